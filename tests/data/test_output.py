"""What `capfilt run` wrote is what training sees; the benchmark of the loader measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from capfilt.config import RunConfig
from capfilt.data.config import DatasetConfig
from capfilt.data.example import stable_id
from capfilt.models.vocabulary import Vocabulary
from capfilt.run.job import run
from capfilt.run.where import Where
from capfilt.text import normalise
from tests.data.conftest import open_loader
from tests.data.test_loader import first, keys_of
from tests.run.conftest import captioner, config, filter_, ledger_rows, web  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parents[2]


def test_a_runs_output_is_seen_as_its_ledger_says(
    config: RunConfig,  # noqa: F811
    web: str,  # noqa: F811
    tmp_path: Path,
    vocabulary: Vocabulary,
) -> None:
    output = str(tmp_path / "out")
    run(config, Where(web, output, local=True))
    kept = [row for row in ledger_rows(output) if row["verdict"] == "kept"]
    for sources in (("web", "synthetic"), ("synthetic",)):
        rows = [row for row in kept if row["source"] in sources]
        wanted = sorted(
            (row["key"], stable_id(normalise(row["text"], max_words=30))) for row in rows
        )
        dataset = DatasetConfig(output, texts="pairs", sources=sources)  # type: ignore[arg-type]
        loader = open_loader(vocabulary, dataset, batch_size=1)
        assert loader.examples == {"out": len(rows)}
        batches = first(loader, len(rows))
        found = [(b.keys[0].rpartition("/")[2], int(b.text_ids[0])) for b in batches]
        assert sorted(found) == wanted
    images = open_loader(vocabulary, DatasetConfig(output), batch_size=1)
    assert images.examples == {"out": len({row["key"] for row in kept})}
    assert set(keys_of(first(images, images.examples["out"])).values()) == {1}


def test_the_loaders_benchmark_runs() -> None:
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--json", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["workers"] == 2
    assert found["ratio"] == pytest.approx(
        found["loader_images_per_s_per_core"] / found["bare_images_per_s"]
    )
    assert 0.2 < found["cpu_ratio"] < 2
