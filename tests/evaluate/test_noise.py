from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capfilt.config import CaptionConfig, RunConfig, ScoringConfig, resolve
from capfilt.errors import InputError
from capfilt.evaluate.noise import is_run, noise_of_images, noise_of_run
from capfilt.evaluate.pictures import Pictures
from capfilt.models.load import load_captioner, load_filter
from capfilt.run.job import run
from capfilt.run.status import status
from capfilt.run.where import Where
from tests.evaluate.conftest import PICTURES
from tests.models.conftest import make_images
from tests.run.conftest import ledger_rows, web, write_shard

__all__ = ["web"]


@pytest.fixture(scope="module")
def output(
    captioner_folder: Path, filter_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a run over two shards."""
    folder = tmp_path_factory.mktemp("run")
    for index in range(2):
        write_shard(folder / "web", index, 12)
    return made_run(
        folder, resolve(options={"captioner": str(captioner_folder), "filter": str(filter_folder)})
    )


def made_run(folder: Path, config: RunConfig) -> Path:
    out = folder / "out"
    run(config, Where(str(folder / "web"), str(out), local=True), live=False)
    return out


def test_noise_of_a_run_is_that_of_its_status(output: Path) -> None:
    found = noise_of_run(str(output))
    assert found.noise_ratio == pytest.approx(status(str(output)).noise_ratio)
    assert 0 < found.noise_ratio < 1
    assert (found.synthetic, found.web, found.threshold) == (24, 24, 0.5)
    assert is_run(str(output))
    assert not is_run(str(output.parent))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.8, 1.0, None])
def test_noise_of_a_run_at_another_threshold_is_counted_anew(
    threshold: float | None, output: Path
) -> None:
    if threshold is None:  # one that a caption just reaches
        probs = [row["match_prob"] for row in ledger_rows(output) if row["source"] == "synthetic"]
        threshold = sorted(probs)[5]
    found = noise_of_run(str(output), threshold=threshold)

    def rejected(row: dict[str, Any]) -> bool:
        return row["match_prob"] is None or row["match_prob"] < threshold

    by_source = {
        source: [rejected(row) for row in ledger_rows(output) if row["source"] == source]
        for source in ("synthetic", "web")
    }
    assert found.synthetic_rejected == sum(by_source["synthetic"])
    assert found.web_rejected == sum(by_source["web"])
    assert any(row["match_prob"] is None for row in ledger_rows(output)), "an empty web text"


def test_noise_of_a_run_without_scores_says_what_is_missing(web: str, output: Path) -> None:
    models = json.loads((output / "manifest.json").read_text())["config"]
    config = resolve(options={"captioner": models["captioner"], "filter": "none"})
    bare = made_run(Path(web).parent, config)
    with pytest.raises(InputError, match="had no threshold; say --threshold"):
        noise_of_run(str(bare))
    with pytest.raises(InputError, match="no synthetic caption has a match probability"):
        noise_of_run(str(bare), threshold=0.5)


def test_noise_of_images_is_what_captioner_and_filter_make_of_them(
    captioner_folder: Path, filter_folder: Path, pictures: Path
) -> None:
    scoring, images = ScoringConfig(), list(make_images(PICTURES))
    captioner = load_captioner(str(captioner_folder), CaptionConfig(), seed=3, device="cpu")
    filter_ = load_filter(str(filter_folder), scoring, device="cpu")
    captions = captioner.caption(images, [f"{i}.png" for i in range(PICTURES)])
    scores = [of_image[0].match_prob for of_image in filter_.score(images, captions)]
    assert None not in scores
    threshold = sorted(scores)[PICTURES // 3]
    place = Pictures(str(pictures))
    found = noise_of_images(captioner, filter_, scoring, place, threshold=threshold)
    assert (found.synthetic, found.synthetic_rejected) == (PICTURES, PICTURES // 3)
    assert found.to_dict()["noise_ratio"] == pytest.approx(1 / 3)
    few = noise_of_images(captioner, filter_, scoring, place, threshold=1.1, limit=5)
    assert (few.synthetic, few.synthetic_rejected) == (5, 5)
