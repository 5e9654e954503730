from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from capfilt.cut import CutConfig
from capfilt.export.export import export
from capfilt.report.report import report
from capfilt.select.missing import missing_shards
from capfilt.select.origin import Origin
from capfilt.select.select import forecast, select
from tests.select.conftest import Runs


def without(origin: str, copy: Path, shard_id: str) -> str:
    """A copy of an output in which one shard is not committed."""
    shutil.copytree(origin, copy)
    (copy / "commits" / f"{shard_id}.json").unlink()
    return str(copy)


def test_missing_shards_are_those_of_the_input_without_a_commit(runs: Runs, tmp_path: Path) -> None:
    assert missing_shards(Origin.open(runs["blip"])) == []
    part = without(runs["blip"], tmp_path / "part", "00002")
    assert missing_shards(Origin.open(part)) == ["00002"]


def test_missing_shards_of_a_cut_are_those_that_its_origin_has(runs: Runs, tmp_path: Path) -> None:
    select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=0.6))
    assert missing_shards(Origin.open(str(tmp_path / "cut"))) == []
    part = without(str(tmp_path / "cut"), tmp_path / "part", "00001")
    assert missing_shards(Origin.open(part)) == ["00001"]


def test_missing_shards_of_an_input_that_is_gone_are_not_known(runs: Runs, tmp_path: Path) -> None:
    part = without(runs["blip"], tmp_path / "part", "00002")
    manifest = Path(part, "manifest.json")
    gone = manifest.read_text().replace(str(runs.folder / "web"), str(tmp_path / "gone"))
    manifest.write_text(gone)
    assert missing_shards(Origin.open(part)) == []


@pytest.mark.parametrize(("allowed", "missing"), [(True, ["00002"]), (False, [])])
def test_missing_shards_that_are_unfinished_count_where_the_run_takes_them(
    allowed: bool, missing: list[str], runs: Runs, tmp_path: Path
) -> None:
    shutil.copytree(runs.folder / "web", tmp_path / "web")
    (tmp_path / "web" / "00002_stats.json").unlink()
    part = without(runs["blip"], tmp_path / "part", "00002")
    manifest = Path(part, "manifest.json")
    tree = json.loads(manifest.read_text())
    tree |= {"input": str(tmp_path / "web"), "allow_unfinished": allowed}
    manifest.write_text(json.dumps(tree))
    assert missing_shards(Origin.open(part)) == missing


def test_whatever_is_made_from_an_unfinished_run_tells_of_it(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = without(runs["blip"], tmp_path / "part", "00002")
    forecast(part, CutConfig(min_match_prob=0.6))
    select(part, str(tmp_path / "cut"), CutConfig(min_match_prob=0.6))
    report(part, samples=0)
    export(part, str(tmp_path / "exported"), "lavis")
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == 4 * [f"{part} lacks 1 of 4 shards, e.g. 00002: `capfilt status` says why"]
