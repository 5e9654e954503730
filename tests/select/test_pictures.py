from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capfilt.config import resolve
from capfilt.cut import CutConfig
from capfilt.errors import ConfigError
from capfilt.run.job import run
from capfilt.run.status import status
from capfilt.run.verify import verify
from capfilt.run.where import Where
from capfilt.select.select import forecast, select
from tests.run.conftest import ledger_rows
from tests.select.conftest import Runs


def photo(seed: int, side: int = 200, quality: int = 90) -> bytes:
    """As full of detail as a photograph is; of a seed in any size the same."""
    patches = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((200, 200), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.resize((side, side)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def scaled(seed: int) -> bytes:
    return photo(seed, side=120, quality=60)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def crowd(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over pictures 0 to 9, then two copies and three smaller ones of them."""
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "web").mkdir()
    pictures = [photo(n) for n in range(10)]
    for shard, images in enumerate((pictures, [pictures[1], scaled(2), pictures[3]])):
        with tarfile.open(folder / f"web/{shard}.tar", "w") as tar:
            for place, image in enumerate([*images, scaled(4 + shard)]):
                add(tar, f"{shard}{place:02d}.jpg", image)
                add(tar, f"{shard}{place:02d}.txt", b"a text")
    config = resolve(
        options={**runs.models, "filter": "none"},
    )
    run(config, Where(input=str(folder / "web"), output=str(folder / "run"), local=True))
    return str(folder / "run")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures 1 and 5, of which the crowd has two each."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "1.jpg").write_bytes(photo(1))
    (folder / "5.jpg").write_bytes(photo(5, side=350))
    return str(folder)


@pytest.fixture(scope="module")
def scored(crowd: str, runs: Runs) -> str:
    """A run over the crowd with scores of both kinds."""
    return scored_run(crowd, runs, "scored")


@pytest.fixture(scope="module")
def cleaned(crowd: str, benchmark: str, runs: Runs) -> str:
    """The same less copies and pictures of the benchmark, which no model has seen."""
    return scored_run(
        crowd, runs, "cleaned", "images.dedupe=exact", f"images.exclude=[{benchmark}]"
    )


def scored_run(crowd: str, runs: Runs, name: str, *overrides: str) -> str:
    output = Path(crowd).parent / name
    both = ["scoring.similarity=true", "selection.min_match_prob=0.5", "captions.per_image=3"]
    config = resolve(options=runs.models, overrides=[*both, *overrides])
    run(config, Where(input=f"{Path(crowd).parent}/web", output=str(output), local=True))
    return str(output)


def dropped(output: str | Path) -> dict[str, str]:
    """Reason by key, and all texts of an image share it."""
    found = {row["key"]: row["reason"] for row in ledger_rows(output) if row["reason"]}
    counts = Counter(row["key"] for row in ledger_rows(output) if row["reason"])
    assert set(counts.values()) <= {2}
    return found


def test_exact_duplicates_leave_the_first(crowd: str, tmp_path: Path) -> None:
    select(crowd, str(tmp_path / "cut"), CutConfig(dedupe_images="exact"))
    assert dropped(tmp_path / "cut") == {"100": "duplicate_image", "102": "duplicate_image"}
    assert verify(str(tmp_path / "cut")).problems == ()
    counts = json.loads((tmp_path / "cut/commits/1.json").read_text())["counts"]
    assert counts["dropped_texts"] == {"duplicate_image": 4}
    assert counts["dropped_samples"] == {"duplicate_image": 2}


def test_perceptual_duplicates_leave_the_first(crowd: str, tmp_path: Path) -> None:
    select(crowd, str(tmp_path / "cut"), CutConfig(dedupe_images="perceptual"))
    same, near = "duplicate_image", "near_duplicate_image"
    expected = {"010": near, "100": same, "101": near, "102": same, "103": near}
    assert dropped(tmp_path / "cut") == expected


def test_evaluation_images_are_dropped_in_whatever_size(
    crowd: str, benchmark: str, tmp_path: Path
) -> None:
    config = CutConfig(exclude=(benchmark,), dedupe_images="exact")
    select(crowd, str(tmp_path / "cut"), config)
    found = dropped(tmp_path / "cut")
    assert {key for key, reason in found.items() if reason == "evaluation_image"} == {
        "001",
        "005",
        "100",
        "103",
    }
    assert found["102"] == "duplicate_image"
    assert len(found) == 5


def test_images_are_needed(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="this OUTPUT has none"):
        forecast(runs["texts"], CutConfig(dedupe_images="exact"))


CLEANED = {"001", "005", "100", "102", "103"}  # of the benchmark, or a copy
Kept = set[tuple[str, str, int]]


def ids(rows: list[dict[str, Any]]) -> Kept:
    return {(row["key"], row["source"], row["index"]) for row in rows}


def kept(output: str | Path) -> Kept:
    return ids([row for row in ledger_rows(output) if row["verdict"] == "kept"])


@pytest.mark.parametrize(
    "config",
    [
        CutConfig(min_match_prob=0.5),
        CutConfig(min_match_prob=0.0),
        CutConfig(min_similarity=0.0),
        CutConfig(top_k=2),
        CutConfig(keep_fraction=0.5),
    ],
    ids=str,
)
def test_rules_on_scores_leave_out_what_a_run_has_dropped_by_its_image(
    config: CutConfig, cleaned: str, tmp_path: Path
) -> None:
    rows = [row for row in ledger_rows(cleaned) if row["match_prob"] is not None]
    assert {row["key"] for row in ledger_rows(cleaned)} - {row["key"] for row in rows} == CLEANED
    best = sorted(rows, key=lambda row: -row["similarity"])
    expected = {
        "min_match_prob": [r for r in rows if r["match_prob"] >= (config.min_match_prob or 0)],
        "min_similarity": [row for row in rows if row["similarity"] >= 0],
        "top_k": [
            row
            for key in {row["key"] for row in rows}
            for row in [row for row in best if row["key"] == key][:2]
        ],
        "keep_fraction": best[: len(rows) // 2],
    }
    [rule] = [name for name in expected if getattr(config, name) is not None]
    select(cleaned, str(tmp_path / "cut"), config)
    assert kept(tmp_path / "cut") == ids(expected[rule]) != set()
    if config.min_match_prob == 0.5:  # the run's own
        data = "data/0.tar"
        assert (tmp_path / "cut" / data).read_bytes() == Path(cleaned, data).read_bytes()


def test_a_cut_of_a_cut_does_not_put_images_back(
    scored: str, benchmark: str, tmp_path: Path
) -> None:
    first = CutConfig(
        min_match_prob=0.5,
        where="size > 0 or size is None",
        exclude=(benchmark,),
        dedupe_images="exact",
    )
    cut, again, third = (str(tmp_path / name) for name in ("cut", "again", "third"))
    select(scored, cut, first)
    select(cut, again, CutConfig(min_match_prob=0.0, where="size is None"))
    # An image without a text was not looked at: it may be of the benchmark, and stays out.
    looked_at = {key for key, _, _ in kept(cut)}
    assert looked_at.isdisjoint(CLEANED)
    scored_rows = [row for row in ledger_rows(scored) if row["key"] in looked_at]
    assert kept(again) == ids(scored_rows) > kept(cut)
    rules = json.loads((tmp_path / "again/manifest.json").read_text())["config"]["selection"]
    assert rules["exclude"] == [benchmark]
    assert rules["dedupe_images"] == "exact"
    assert rules["where"] == "(size > 0 or size is None) and (size is None)"
    select(again, third, CutConfig(top_k=9))
    assert kept(third) == kept(again)
    assert verify(third).problems == ()


def test_a_run_and_a_cut_drop_the_same_images_for_the_same_reasons(
    scored: str, cleaned: str, benchmark: str, tmp_path: Path
) -> None:
    """Picture 1 comes twice and is of the benchmark: that is what both are dropped for."""
    config = CutConfig(min_match_prob=0.5, exclude=(benchmark,), dedupe_images="exact")
    with_all = str(tmp_path / "all")
    select(scored, with_all, CutConfig(min_match_prob=0.0))
    before = status(with_all).tally
    assert before.dropped_samples == {}
    found = forecast(with_all, config).after
    by_image = {"duplicate_image": 1, "evaluation_image": 4}
    of_run = status(cleaned).tally
    assert of_run.dropped_samples - Counter(no_text_kept=99) == by_image
    assert found.dropped_samples.keys() <= {*by_image, "no_text_kept"}
    assert found.dropped_samples.total() == of_run.dropped_samples.total()
    assert found.samples == of_run.samples
