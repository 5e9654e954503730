from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

from capfilt.config import ImageConfig
from capfilt.cut import CutConfig
from capfilt.errors import CapfiltError, CommitError, ConfigError, InputError
from capfilt.io.lease import Fence
from capfilt.io.reader import read_samples
from capfilt.record import Verdict
from capfilt.report.report import _rule
from capfilt.report.sheets import _picture
from capfilt.run.manifest import Manifest
from capfilt.run.status import status
from capfilt.run.summary import Summary
from capfilt.run.verify import verify
from capfilt.select import cutter
from capfilt.select.origin import Origin
from capfilt.select.select import forecast, select
from capfilt.select.splice import NotPlainError
from capfilt.select.survey import Survey
from capfilt.shard import Form, InputShard
from tests.run.conftest import hashes, ledger_rows
from tests.select.conftest import Runs

Key = tuple[str, str, int]


def kept(output: str | Path) -> set[Key]:
    return {
        (row["key"], row["source"], row["index"])
        for row in ledger_rows(output)
        if row["verdict"] == "kept"
    }


def of_data(output: str | Path) -> dict[str, str]:
    return {path: sha for path, sha in hashes(output).items() if path.startswith("data/")}


def cut(runs: Runs, kind: str, folder: Path, config: CutConfig, **options: bool) -> Summary:
    """Cut a run, and see that all of it is as committed."""
    summary = select(runs[kind], str(folder / "cut"), config, **options)
    assert not summary.shards_failed
    assert verify(str(folder / "cut")).problems == ()
    assert status(str(folder / "cut")).done == 4
    return summary


@pytest.mark.parametrize("kind", ["blip", "parquet", "texts", "blip2"])
def test_select_without_rules_gives_the_runs_own_bytes(
    kind: str, runs: Runs, tmp_path: Path
) -> None:
    cut(runs, kind, tmp_path, CutConfig())
    assert of_data(tmp_path / "cut") == of_data(runs[kind])
    assert kept(tmp_path / "cut") == kept(runs[kind])


def test_select_of_damaged_tars_that_stay_whole_does_not_pass_them_off_as_sound(
    runs: Runs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["blip"], run)
    for name, stop in (("00001", None), ("00002", -512)):
        shard = run / f"data/{name}.tar"
        shard.write_bytes(shard.read_bytes().replace(b"\xff\xd9", b"\xd9\xff")[:stop])
    summary = select(str(run), str(tmp_path / "cut"), CutConfig())
    [failed] = summary.shards_failed
    assert failed.shard.id == "00002"
    assert "when it was committed" in failed.error
    [problem] = verify(str(tmp_path / "cut")).problems
    assert "00001" in problem


@pytest.mark.parametrize(
    ("kind", "config"),
    [("blip", CutConfig(min_match_prob=0.5)), ("blip2", CutConfig(top_k=2))],
)
def test_select_at_the_runs_own_rule_gives_its_kept_set(
    kind: str, config: CutConfig, runs: Runs, tmp_path: Path
) -> None:
    cut(runs, kind, tmp_path, config)
    assert of_data(tmp_path / "cut") == of_data(runs[kind])
    assert 0 < len(kept(tmp_path / "cut")) == len(kept(runs[kind])) < 150


def test_select_at_a_lower_threshold_is_the_run_at_that_threshold(
    runs: Runs, tmp_path: Path
) -> None:
    """Images that the run has dropped come from INPUT."""
    cut(runs, "blip", tmp_path, CutConfig(min_match_prob=0.45))
    assert of_data(tmp_path / "cut") == of_data(runs["lower"]) != of_data(runs["blip"])


def test_select_at_a_higher_threshold_is_the_run_at_that_threshold(
    runs: Runs, tmp_path: Path
) -> None:
    cut(runs, "lower", tmp_path, CutConfig(min_match_prob=0.5))
    assert of_data(tmp_path / "cut") == of_data(runs["blip"])


def test_select_of_a_cut_finds_images_that_the_cut_has_dropped(runs: Runs, tmp_path: Path) -> None:
    cut(runs, "blip", tmp_path, CutConfig(min_match_prob=0.55))
    assert 0 < len(kept(tmp_path / "cut")) < len(kept(runs["blip"]))
    again = tmp_path / "again"
    select(str(tmp_path / "cut"), str(again), CutConfig(min_match_prob=0.45))
    assert of_data(again) == of_data(runs["lower"])


def test_spliced_tars_have_the_bytes_of_written_ones(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CutConfig(mix="synthetic-first", drop_repetitive=True)
    cut(runs, "blip2", tmp_path, config)

    def not_plain(*_: object, **__: object) -> None:
        raise NotPlainError

    monkeypatch.setattr(cutter, "splice", not_plain)
    survey = Survey.of(Origin.open(runs["blip2"]), config)
    writer = cutter.Cutter(
        survey, str(tmp_path / "written"), survey.origin.output, "", Fence("", None)
    )
    for shard in survey.origin.shards():
        writer.process(shard)
    assert of_data(tmp_path / "written") == of_data(tmp_path / "cut") != of_data(runs["blip2"])


@pytest.mark.parametrize("least", [0.4, 0.48, 0.52, 0.6])
def test_threshold_counts_are_those_of_a_query(least: float, runs: Runs) -> None:
    table = pyarrow.dataset.dataset(Path(runs["blip2"], "ledger")).to_table()
    able = pc.greater_equal(table["match_prob"].cast("double"), least)
    expected = Counter(table.filter(able)["source"].to_pylist())
    found = forecast(runs["blip2"], CutConfig(min_match_prob=least)).after
    assert {
        str(source): n for (source, verdict), n in found.texts.items() if verdict == Verdict.KEPT
    } == dict(expected)
    images = len(set(table.filter(able)["key"].to_pylist()))
    assert found.samples[Verdict.KEPT] == images


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.29, 0.5, 1.0])
def test_kept_fraction_is_exact_over_the_whole_ledger(fraction: float, runs: Runs) -> None:
    rows = [row for row in ledger_rows(runs["blip2"]) if row["match_prob"] is not None]
    wanted = int(round(fraction * 1000) * len(rows)) // 1000
    best = sorted(range(len(rows)), key=lambda i: (-rows[i]["match_prob"], i))[:wanted]
    expected = Counter((rows[i]["source"], "kept") for i in best)
    config = CutConfig(keep_fraction=fraction, by="match_prob")
    forecast_ = forecast(runs["blip2"], config)
    assert forecast_.kept_from == rows[best[-1]]["match_prob"] if best else True
    found = forecast_.after
    assert {(str(s), str(v)): n for (s, v), n in found.texts.items() if v == Verdict.KEPT} == dict(
        expected
    )


def test_kept_fraction_takes_the_earlier_of_equal_scores(runs: Runs, tmp_path: Path) -> None:
    """The six web texts come again and again, but captions of one image can tie as well."""
    config = CutConfig(keep_fraction=0.5, by="match_prob")
    cut(runs, "blip2", tmp_path, config)
    rows = [row for row in ledger_rows(runs["blip2"]) if row["match_prob"] is not None]
    best = sorted(range(len(rows)), key=lambda i: (-rows[i]["match_prob"], i))[: len(rows) // 2]
    expected = {(rows[i]["key"], rows[i]["source"], rows[i]["index"]) for i in best}
    assert kept(tmp_path / "cut") == expected
    least = rows[best[-1]]["match_prob"]
    select(str(tmp_path / "cut"), str(tmp_path / "again"), CutConfig(dedupe_captions=True))
    for name in ("cut", "again"):  # and the report marks it
        manifest = Manifest.read(str(tmp_path / name))
        assert manifest is not None
        assert _rule(manifest) == ("match_prob", least)


def test_deduped_captions_stay_with_the_first_image(runs: Runs, tmp_path: Path) -> None:
    cut(runs, "blip", tmp_path, CutConfig(min_match_prob=0.45, dedupe_captions=True))
    seen: set[str] = set()
    expected = set()
    for row in ledger_rows(runs["lower"]):
        if row["verdict"] == "kept" and row["text"].lower().split() != []:
            text = " ".join(row["text"].lower().split())
            if text not in seen:
                expected.add((row["key"], row["source"], row["index"]))
            seen.add(text)
    assert kept(tmp_path / "cut") == expected
    assert len(expected) < len(kept(runs["lower"]))


def test_where_filters_by_metadata_and_reads_it_from_data_and_input(
    runs: Runs, tmp_path: Path
) -> None:
    config = CutConfig(min_match_prob=0.45, where="similarity >= 0.5")  # the input's own field
    cut(runs, "blip", tmp_path, config)
    expected = {key for key in kept(runs["lower"]) if int(key[0]) % 100 / 8 >= 0.5}
    assert kept(tmp_path / "cut") == expected != kept(runs["lower"])
    reasons = Counter(row["reason"] for row in ledger_rows(tmp_path / "cut"))
    assert reasons["metadata_filtered"] == len(kept(runs["lower"])) - len(expected)


def test_where_with_a_field_that_no_sample_has_is_an_error(runs: Runs) -> None:
    with pytest.raises(ConfigError, match=r"no sample has a field widht; there are .*similarity"):
        forecast(runs["blip"], CutConfig(where="widht > 3"))


def test_text_only_sidecar_joins_by_key(runs: Runs, tmp_path: Path) -> None:
    cut(runs, "blip", tmp_path, CutConfig(min_match_prob=0.55), images=False)
    shard = InputShard("00000", Form.TAR, str(tmp_path / "cut/data/00000.tar"), 0, "")
    samples = list(read_samples(shard, ImageConfig()))
    assert all(sample.image is None for sample in samples)
    expected = {key for key, _, _ in kept(tmp_path / "cut") if key < "000000100"}
    assert {sample.key for sample in samples} == expected
    assert samples[0].metadata["captions"][0]["match_prob"] >= 0.55


def test_select_resumes_and_refuses_another_cut(runs: Runs, tmp_path: Path) -> None:
    config = CutConfig(min_match_prob=0.55)
    cut(runs, "blip", tmp_path, config)
    before = hashes(tmp_path / "cut")
    (tmp_path / "cut/commits/00001.json").unlink()
    (tmp_path / "cut/data/00002.tar").unlink()
    summary = cut(runs, "blip", tmp_path, config)
    assert (summary.shards_done, summary.shards_before) == (2, 2)
    assert hashes(tmp_path / "cut") == before
    with pytest.raises(CommitError, match=r"selection.min_match_prob: 0.55 -> 0.6"):
        select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=0.6))
    select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=0.6), overwrite=True)
    assert verify(str(tmp_path / "cut")).problems == ()


def test_select_without_the_score_says_what_there_is(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="has no similarity of its texts: it has match_prob"):
        forecast(runs["blip"], CutConfig(min_similarity=0.2))


def test_select_over_what_it_reads_is_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs["blip"])
    before = hashes(runs["blip"])
    for place in (f"{runs['blip']}/cut", runs["blip"], str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="lies in OUTPUT"):
            select(runs["blip"], place, CutConfig(min_match_prob=0.6), overwrite=True)
    select(runs["blip"], str(tmp_path / "cut"), CutConfig(min_match_prob=0.6))
    for place in (runs["blip"], f"{runs.folder}/web/cut"):
        origin = str(tmp_path / "cut") if place == runs["blip"] else runs["blip"]
        with pytest.raises(ConfigError, match="lies in what OUTPUT was made from"):
            select(origin, place, CutConfig(), overwrite=True)
    assert hashes(runs["blip"]) == before


def test_forecast_counts_each_rule_that_was_asked_for(runs: Runs) -> None:
    config = CutConfig(min_match_prob=0.0, where="similarity >= 0", drop_repetitive=True, top_k=9)
    found = forecast(runs["blip2"], config)
    assert list(found.left_after()) == [
        "below_min_match_prob",
        "repetitive_text",
        "metadata_filtered",
        "not_in_top_k",
    ]
    assert found.left_after()["below_min_match_prob"] == found.candidates


def test_rules_that_say_nothing_are_refused(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# none\n")
    with pytest.raises(InputError, match="nothing to exclude"):
        forecast(runs["blip"], CutConfig(exclude=(str(tmp_path / "empty.txt"),)))
    with pytest.raises(ConfigError, match="--where ''"):
        forecast(runs["blip"], CutConfig(where=""))
    with pytest.raises(ConfigError, match="has no similarity"):
        forecast(runs["blip"], CutConfig(by="similarity"))
    with pytest.raises(ValueError, match="exclude names a folder"):
        CutConfig(exclude=("",))


def test_images_that_are_nowhere_any_more_are_told(runs: Runs, tmp_path: Path) -> None:
    web, moved = runs.folder / "web", runs.folder / "moved"
    origin = runs["blip"]
    web.rename(moved)
    try:
        summary = select(origin, str(tmp_path / "cut"), CutConfig(min_match_prob=0.45))
        assert {failed.shard.id for failed in summary.shards_failed} <= {
            f"{i:05d}" for i in range(4)
        }
        assert "not there any more" in summary.shards_failed[0].error
        kept_only = select(origin, str(tmp_path / "kept"), CutConfig(min_match_prob=0.55))
        assert not kept_only.shards_failed
    finally:
        moved.rename(web)


@pytest.mark.parametrize(
    ("old", "keeps_time", "message"),
    [
        (b"\xff\xd9", False, "has changed since the run"),  # the end of each picture
        (b"buy now free shipping", True, "that is another file now"),
    ],
)
def test_input_of_the_same_size_with_other_samples_is_told(
    old: bytes, keeps_time: bool, message: str, runs: Runs
) -> None:
    """A download made again may have other pictures under the same keys."""
    origin = Origin.open(runs["blip"])
    shard = runs.folder / "web/00000.tar"
    before, times = shard.read_bytes(), shard.stat()
    needed = np.ones(12, dtype=bool)
    assert len(list(origin.samples("00000", needed))) == 12
    try:
        shard.write_bytes(before.replace(old, old[::-1]))
        if keeps_time:
            os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(InputError, match=message):
            list(origin.samples("00000", needed))
        number = int(np.flatnonzero(~origin.rows("00000").with_kept())[0])  # in INPUT alone
        picture = _picture(origin, "00000", number, f"{number:09d}")
        assert (picture is None) == (not keeps_time)
    finally:
        shard.write_bytes(before)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_origin_of_another_ledger_is_an_error(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs["blip"], tmp_path / "run")
    shutil.copy(tmp_path / "run/data/00001.tar", tmp_path / "run/data/00000.tar")
    origin = Origin.open(str(tmp_path / "run"))
    present = origin.rows("00000").with_kept()
    with pytest.raises(InputError, match="its ledger"):
        list(origin.samples("00000", present))
    (tmp_path / "run/data/00000.tar").unlink()
    with pytest.raises(CapfiltError, match="not found, but committed"):
        select(str(tmp_path / "run"), str(tmp_path / "cut"), CutConfig())


def test_noise_ratio_of_a_cut_is_told_where_a_threshold_alone_decides(
    runs: Runs, tmp_path: Path
) -> None:
    summary = cut(runs, "blip", tmp_path / "a", CutConfig(min_match_prob=0.5))
    assert summary.noise_ratio is not None
    assert summary.noise_ratio == status(runs["blip"]).noise_ratio
    assert status(str(tmp_path / "a/cut")).noise_ratio == summary.noise_ratio
    config = CutConfig(min_match_prob=0.5, mix="web-first")  # what is not needed is no noise
    assert cut(runs, "blip", tmp_path / "b", config).noise_ratio is None
    assert status(str(tmp_path / "b/cut")).noise_ratio is None
    again = select(str(tmp_path / "b/cut"), str(tmp_path / "c"), CutConfig(dedupe_captions=True))
    assert again.noise_ratio is None
    selection = json.loads((tmp_path / "c/manifest.json").read_text())["config"]["selection"]
    assert (selection["mix"], selection["dedupe_captions"]) == ("web-first", True)


def test_manifest_of_a_cut_tells_the_texts_story(runs: Runs, tmp_path: Path) -> None:
    cut(runs, "blip", tmp_path, CutConfig(dedupe_captions=True))
    manifest = json.loads((tmp_path / "cut/manifest.json").read_text())
    run_manifest = json.loads(Path(runs["blip"], "manifest.json").read_text())
    assert manifest["models"] == run_manifest["models"]
    assert manifest["config"]["captions"] == run_manifest["config"]["captions"]
    assert manifest["config"]["selection"]["min_match_prob"] == 0.5  # the run's, which holds on
    assert manifest["decisive"]["selection"]["min_match_prob"] is None
    assert manifest["input"] == runs["blip"]
