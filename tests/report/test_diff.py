from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from capfilt.cut import CutConfig
from capfilt.errors import ConfigError
from capfilt.record import Verdict
from capfilt.report.diff import diff
from capfilt.run.status import status
from capfilt.select.select import select
from tests.run.conftest import ledger_rows
from tests.select.conftest import (
    Runs,
    runs,  # noqa: F401 - a fixture
)


def by_id(output: str | Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(row["key"], row["source"], row["index"]): row for row in ledger_rows(output)}


def test_diff_counts_what_two_runs_decided(runs: Runs) -> None:  # noqa: F811
    a, b = by_id(runs["blip"]), by_id(runs["blip2"])
    expected: Counter[tuple[str, str]] = Counter()
    for name in a.keys() | b.keys():
        in_a = name in a and a[name]["verdict"] == "kept"
        in_b = name in b and b[name]["verdict"] == "kept"
        kind = {(1, 1): "kept by both", (0, 0): "kept by neither", (1, 0): "kept by A alone"}
        expected[name[1], kind.get((in_a, in_b), "kept by B alone")] += 1
        if name in a and name in b and a[name]["text"] != b[name]["text"]:
            expected[name[1], "another text"] += 1
    found = diff(runs["blip"], runs["blip2"], samples=3)
    assert found.counts == expected
    assert found.counts["synthetic", "kept by B alone"] > 5
    assert "captions.per_image: 1 -> 3" in found.config
    assert "selection.top_k: None -> 2" in found.config
    for kind, changes in found.samples.items():
        assert len(changes) == min(3, sum(n for (_, k), n in expected.items() if k == kind))
        for change in changes:
            assert change.key in {name[0] for name in a}
    alone = found.samples["kept by A alone"][0]
    assert alone.reason[0] is None
    assert alone.reason[1] == "not_in_top_k"
    again = diff(runs["blip"], runs["blip2"], samples=3)
    assert again.to_dict() == found.to_dict()


def test_diff_of_a_run_and_its_cut_shows_scores(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=0.6))
    found = diff(runs["blip"], str(tmp_path / "cut"))
    assert found.config == [
        "selection.by: None -> match_prob",
        "selection.min_match_prob: 0.5 -> 0.6",
    ]
    for name, place in (("a", runs["blip"]), ("b", str(tmp_path / "cut"))):
        dropped = status(place).tally.samples[Verdict.DROPPED]
        assert found.dropped_images[name] == {"no_text_kept": dropped}
    assert {kind for _, kind in found.counts} == {
        "kept by both",
        "kept by neither",
        "kept by A alone",
    }
    for change in found.samples["kept by A alone"]:
        assert change.match_prob[0] == change.match_prob[1]
        assert 0.5 <= (change.match_prob[0] or 0) < 0.6
        assert change.reason == (None, "below_min_match_prob")


def test_diff_of_a_changed_text_tells_both(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    import shutil

    import pyarrow.parquet as pq

    shutil.copytree(runs["blip"], tmp_path / "other")
    path = tmp_path / "other/ledger/00001.parquet"
    table = pq.read_table(path)
    texts = ["changed", *table["text"].to_pylist()[1:]]
    place = table.schema.get_field_index("text")
    pq.write_table(table.set_column(place, "text", [texts]), path)
    (tmp_path / "other/commits/00003.json").unlink()
    found = diff(runs["blip"], str(tmp_path / "other"))
    assert found.only_a == ["00003"]
    assert [change.text[1] for change in found.samples["another text"]] == ["changed"]


def test_diff_tells_keys_that_come_again_by_their_place(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    import shutil

    import pyarrow.parquet as pq

    shutil.copytree(runs["blip"], tmp_path / "other")
    path = tmp_path / "other/ledger/00001.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("key")
    pq.write_table(table.set_column(place, "key", [["same"] * table.num_rows]), path)
    found = diff(str(tmp_path / "other"), str(tmp_path / "other"))
    assert {kind for _, kind in found.counts} == {"kept by both", "kept by neither"}
    assert found.counts.total() == len(ledger_rows(tmp_path / "other"))


def test_diff_of_different_inputs_is_an_error(runs: Runs, hostile_run: str, tmp_path: Path) -> None:  # noqa: F811
    import shutil

    shutil.copytree(hostile_run, tmp_path / "other")
    for commit in (tmp_path / "other/commits").iterdir():
        text = commit.read_text().replace('"shard": "0', '"shard": "x')
        commit.rename(commit.with_name("x" + commit.name)).write_text(text)
    with pytest.raises(ConfigError, match="--samples must be 0 or more"):
        diff(runs["blip"], runs["blip"], samples=-1)
    with pytest.raises(ConfigError, match="no shard in common"):
        diff(runs["blip"], str(tmp_path / "other"))
