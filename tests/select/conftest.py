"""Runs of four small shards, to be cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.config import resolve
from capfilt.run.job import run
from capfilt.run.where import Where
from tests import checkpoints
from tests.run.conftest import write_shard

# What they score is a matter of their random weights; 0.5 and 0.49 part the texts about evenly.
KINDS = {
    "blip": [],
    "lower": ["selection.min_match_prob=0.45"],
    "parquet": ["output.format=parquet"],
    "texts": ["output.format=parquet", "output.images=false"],
    "blip2": [
        "captions.per_image=3",
        "scoring.similarity=true",
        "selection.min_match_prob=null",
        "selection.top_k=2",
    ],
}


class Runs:
    """Runs over the same web, by kind; made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {
            "captioner": str(checkpoints.make_captioner(folder / "captioner")),
            "filter": str(checkpoints.make_filter(folder / "filter")),
        }
        for index in range(4):
            write_shard(folder / "web", index, 12)

    def __getitem__(self, kind: str) -> str:
        output = self.folder / kind
        if not output.exists():
            config = resolve(options=self.models, overrides=KINDS[kind])
            run(config, Where(input=str(self.folder / "web"), output=str(output), local=True))
        return str(output)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))
