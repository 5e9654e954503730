"""`capfilt run` in-process: what goes in, what comes out, and what a second call does."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset
import pytest
from PIL import Image

from capfilt.config import RunConfig, resolve
from capfilt.errors import ConfigError, InputError, ModelError
from capfilt.io.commits import Failure, InputRecord, write_failure
from capfilt.io.inputs import find_shards
from capfilt.record import Source, Verdict
from capfilt.run.status import status
from capfilt.run.verify import verify
from tests.run.conftest import (
    commits,
    hashes,
    ledger_rows,
    local,
    picture,
    tar_samples,
    write_shard,
)


def test_run_every_sample_is_in_the_ledger_and_counts_add_up(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    summary = local(config, web, tmp_path / "out")
    assert summary.shards_done == 4
    assert summary.images == summary.tally.read == 48
    rows = ledger_rows(tmp_path / "out")
    web_keys = [row["key"] for row in rows if row["source"] == "web"]
    assert web_keys == [f"{shard * 100 + i:09d}" for shard in range(4) for i in range(12)]
    synthetic = [row for row in rows if row["source"] == "synthetic"]
    assert len(synthetic) == 48
    # The untrained models must disagree with each other for this test to mean anything.
    kept = {row["verdict"] for row in synthetic}
    assert kept == {"kept", "dropped"}
    assert summary.tally.noise_ratio == pytest.approx(
        sum(row["verdict"] == "dropped" for row in synthetic) / 48
    )
    for row in rows:
        if row["reason"] == "empty_text":
            assert row["text"] == ""
            assert row["match_prob"] is None
        else:
            assert (row["match_prob"] >= 0.5) == (row["verdict"] == "kept")


def test_run_data_holds_the_kept_with_original_bytes_and_fields(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    rows = [row for row in ledger_rows(tmp_path / "out") if row["verdict"] == "kept"]
    kept: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        kept.setdefault(row["key"], []).append(row)
    found = {}
    for shard in range(4):
        for sample in tar_samples(tmp_path / "out" / "data" / f"{shard:05d}.tar"):
            found[sample["__key__"].decode()] = sample
    assert found.keys() == kept.keys()
    for key, sample in found.items():
        assert sample["jpg"] == picture(int(key))
        fields = json.loads(sample["json"])
        assert fields["url"] == f"http://host.invalid/{key}"
        assert fields["similarity"] == int(key) % 100 / 8
        assert fields["error_message"] is None
        assert sample["txt"].decode() == fields["caption"] == kept[key][0]["text"]
        assert [c["text"] for c in fields["captions"]] == [row["text"] for row in kept[key]]
        assert [c["source"] for c in fields["captions"]] == [row["source"] for row in kept[key]]


def test_run_again_does_nothing(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    local(config, web, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    summary = local(config, web, out)
    assert (summary.shards_done, summary.shards_before) == (0, 4)
    assert summary.tally.read == 48
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}


def test_run_in_pieces_gives_the_same_bytes(config: RunConfig, web: str, tmp_path: Path) -> None:
    local(config, web, tmp_path / "whole")
    first = local(config, web, tmp_path / "pieces", limit=1)
    assert (first.shards_done, first.left_by_limit) == (1, 3)
    shutil.rmtree(tmp_path / "pieces" / "data")  # as if a kill came before the data was there
    for name in ("00000.json",):
        (tmp_path / "pieces" / "commits" / name).unlink()
    local(config, web, tmp_path / "pieces")
    assert hashes(tmp_path / "pieces") == hashes(tmp_path / "whole")
    assert commits(tmp_path / "pieces") == commits(tmp_path / "whole")
    manifests = [(tmp_path / name / "manifest.json").read_text() for name in ("pieces", "whole")]
    assert manifests[0] == manifests[1]


def test_run_grown_input_does_the_new_shards_only(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    write_shard(Path(web), 4, 12)
    summary = local(config, web, tmp_path / "out")
    assert (summary.shards_done, summary.shards_before) == (1, 4)


def test_run_unfinished_shard_is_named_and_skipped_until_allowed(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    write_shard(Path(web), 4, 12, finished=False)
    summary = local(config, web, tmp_path / "out")
    assert summary.shards_done == 4
    assert summary.unfinished == ("00004",)
    summary = local(config, web, tmp_path / "out", allow_unfinished=True)
    assert summary.shards_done == 1


def test_run_captions_and_scores_do_not_depend_on_the_batch(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "five")
    one = replace(config, compute=replace(config.compute, batch_size=1))
    local(one, web, tmp_path / "one")
    for a, b in zip(ledger_rows(tmp_path / "five"), ledger_rows(tmp_path / "one"), strict=True):
        prob_a, prob_b = a.pop("match_prob"), b.pop("match_prob")
        assert prob_a == pytest.approx(prob_b, abs=1e-5)
        assert a == b


def test_run_bad_samples_are_rows_with_reasons(config: RunConfig, tmp_path: Path) -> None:
    gif = io.BytesIO()
    Image.new("P", (1, 1)).save(gif, "GIF")
    write_wds(
        tmp_path / "web" / "00000.tar",
        [
            ("a", {"jpg": picture(1), "txt": b"fine"}),
            ("b", {"jpg": b"<html>no</html>", "txt": b"a page"}),
            ("c", {"jpg": picture(2)[:-200], "txt": b"cut"}),
            ("d", {"jpg": b"", "txt": b"nothing"}),
            ("e", {"txt": b"no image"}),
            ("f", {"gif": gif.getvalue(), "txt": b"a pixel"}),
            ("a", {"jpg": picture(3), "txt": b"again"}),
            ("g", {"jpg": picture(4), "txt": b"\xff\xfe"}),
            ("h", {"jpg": picture(5)}),
            ("i", {"jpg": picture(6), "txt": b" ... "}),
        ],
    )
    summary = local(config, str(tmp_path / "web"), tmp_path / "out")
    rows = [r for r in ledger_rows(tmp_path / "out") if r["source"] == "web"]
    assert [(r["key"], r["reason"]) for r in rows if r["reason"] != "below_min_match_prob"][
        -9:
    ] == [
        ("b", "image_not_an_image"),
        ("c", "image_corrupt"),
        ("d", "image_empty"),
        ("e", "no_image"),
        ("f", "image_too_small"),
        ("a", "duplicate_key"),
        ("g", "text_not_utf8"),
        ("h", "no_text"),
        ("i", "empty_text"),
    ]
    tally = summary.tally
    assert tally.read == 10
    assert tally.samples[Verdict.FAILED] == 6
    assert verify(str(tmp_path / "out")).problems == ()


def test_run_truncated_shard_fails_alone_and_is_tried_again(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    tar = Path(web, "00001.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    summary = local(config, web, tmp_path / "out")
    assert summary.shards_done == 3
    [failed] = summary.shards_failed
    assert failed.shard.id == "00001"
    assert failed.attempts == 3
    assert "00001.tar" in failed.error
    assert not (tmp_path / "out" / "data" / "00001.tar").exists()
    assert [f.shard for f in status(str(tmp_path / "out")).failures] == ["00001"]
    tar.write_bytes(whole)
    summary = local(config, web, tmp_path / "out")
    assert summary.shards_done == 1
    assert status(str(tmp_path / "out")).failures == ()


def test_run_with_a_limit_takes_what_has_failed_last(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    Path(web, "00000.tar").write_bytes(b"")
    found = [local(config, web, out, limit=1) for _ in range(4)]
    assert [len(summary.shards_failed) for summary in found] == [1, 0, 0, 0]
    assert sorted(commits(out)) == ["00001", "00002", "00003"]
    assert len(local(config, web, out, limit=1).shards_failed) == 1


def test_run_forgets_the_failure_of_a_shard_that_is_done_since(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    """As a driver leaves it that dies between the two."""
    out = tmp_path / "out"
    local(config, web, out, limit=1)
    first, second, *_ = find_shards(web).shards
    for shard in (first, second):
        write_failure(str(out), Failure(shard.id, InputRecord.of(shard), 3, "cut"))
    assert [failure.shard for failure in status(str(out)).failures] == [second.id]
    local(config, web, out)
    assert list((out / "failures").iterdir()) == []


@pytest.mark.parametrize(
    ("off", "sources"), [("captioner", {"web"}), ("filter", {"web", "synthetic"})]
)
def test_run_with_a_module_off(
    config: RunConfig, web: str, tmp_path: Path, off: str, sources: set[str]
) -> None:
    options = {"captioner": config.captioner, "filter": config.filter, off: "none"}
    summary = local(resolve(options=options), web, tmp_path / "out")
    rows = ledger_rows(tmp_path / "out")
    assert {row["source"] for row in rows} == sources
    if off == "filter":
        assert {r["verdict"] for r in rows if r["text"]} == {"kept"}
        assert all(row["match_prob"] is None for row in rows)
        assert summary.tally.kept_share(Source.SYNTHETIC) == 1.0


@pytest.mark.parametrize("ranker", ["clip", "filter_"])
def test_run_blip2_keeps_the_two_most_similar(
    captioner: str, web: str, tmp_path: Path, ranker: str, request: pytest.FixtureRequest
) -> None:
    options = {"captioner": captioner, "filter": request.getfixturevalue(ranker)}
    local(resolve(preset="blip2", options=options), web, tmp_path / "out")
    by_key: dict[str, list[dict[str, object]]] = {}
    for row in ledger_rows(tmp_path / "out"):
        by_key.setdefault(row["key"], []).append(row)
    assert len(by_key) == 48
    for rows in by_key.values():
        assert len(rows) == 11
        scored = [r for r in rows if r["similarity"] is not None]
        best = sorted(scored, key=lambda r: -r["similarity"])[:2]  # type: ignore[operator]
        kept = [r for r in rows if r["verdict"] == "kept"]
        assert sorted(r["similarity"] for r in kept) == sorted(r["similarity"] for r in best)  # type: ignore[type-var]
    for sample in tar_samples(tmp_path / "out" / "data" / "00000.tar"):
        captions = json.loads(sample["json"])["captions"]
        assert captions[0]["similarity"] >= captions[1]["similarity"]


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_run_without_images_writes_texts_and_scores(
    config: RunConfig, web: str, tmp_path: Path, format_: str
) -> None:
    without = replace(config, output=replace(config.output, format=format_, images=False))
    local(without, web, tmp_path / "out")
    assert verify(str(tmp_path / "out")).problems == ()
    if format_ == "webdataset":
        for sample in tar_samples(tmp_path / "out" / "data" / "00000.tar"):
            assert sample.keys() == {"__key__", "txt", "json"}
    else:
        table = pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table()
        assert table.num_rows > 0
        assert "image" not in table.column_names


def test_run_human_pairs_join_unfiltered(config: RunConfig, web: str, tmp_path: Path) -> None:
    folder = tmp_path / "human"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(picture(1000 + i))
    pairs = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [
            {"image_id": i, "caption": f"human caption {j} of {i}"}
            for i in range(3)
            for j in (0, 1)
        ],
    }
    (folder / "captions.json").write_text(json.dumps(pairs))
    local(config, web, tmp_path / "out", human=str(folder / "captions.json"))
    rows = [row for row in ledger_rows(tmp_path / "out") if row["source"] == "human"]
    assert [row["text"] for row in rows] == [a["caption"] for a in pairs["annotations"]]
    assert {row["verdict"] for row in rows} == {"kept"}
    assert {row["match_prob"] for row in rows} == {None}
    [shard] = (tmp_path / "out" / "data").glob("human-*.tar")
    samples = list(tar_samples(shard))
    assert [sample["jpg"] for sample in samples] == [picture(1000 + i) for i in range(3)]
    assert verify(str(tmp_path / "out")).problems == ()


def test_run_leaves_no_temporary_file_and_cleans_those_of_killed_attempts(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = re.sub(r"[^\w-]", "_", socket.gethostname())
    (out / "data" / f".00000.tar.{host}-{gone.pid}-0123abcd.tmp").write_bytes(b"half a tar")
    local(config, web, out)
    assert list(out.rglob("*.tmp")) == []


def test_run_wrong_requests_are_one_line(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="missing"):
        local(config, str(tmp_path / "missing"), out)
    with pytest.raises(InputError, match="empty"):
        local(config, str(tmp_path / "empty"), out)
    with pytest.raises(ModelError, match="BlipForImageTextRetrieval"):
        local(replace(config, captioner=config.filter), web, out)
    assert not (out / "manifest.json").exists()


def test_run_looks_at_its_places_before_all_else(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds INPUT"):
        local(config, web, str(Path(web).parent))
    with pytest.raises(ConfigError, match="credentials would be"):
        local(config, "s3://key:s3cr3t@host/web", str(tmp_path / "out"))


def test_run_human_and_web_shards_of_one_id_are_refused(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    (tmp_path / "top").mkdir()
    Path(web).rename(tmp_path / "top" / "web")
    write_shard(tmp_path / "top" / "human-x", 0, 2)
    human = tmp_path / "elsewhere"
    write_shard(human / "x", 0, 2)
    with pytest.raises(InputError, match="same ids: human-x/00000"):
        local(config, str(tmp_path / "top"), tmp_path / "out", human=str(human))


def test_run_overwrite_in_another_format_leaves_no_file_of_the_old(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    local(config, web, tmp_path / "out")
    parquet = replace(config, output=replace(config.output, format="parquet"))
    local(parquet, web, tmp_path / "out", overwrite=True)
    assert {file.suffix for file in (tmp_path / "out" / "data").iterdir()} == {".parquet"}
    assert verify(str(tmp_path / "out")).uncommitted == ()


def test_run_makes_missing_and_cut_files_again(config: RunConfig, web: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    local(config, web, out)
    before = hashes(out)
    (out / "ledger" / "00001.parquet").unlink()
    tar = out / "data" / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    assert (status(str(out)).done, status(str(out)).pending) == (2, 2)
    assert local(config, web, out).shards_done == 2
    assert hashes(out) == before


def test_noise_ratio_is_told_where_a_threshold_decides(
    config: RunConfig, captioner: str, clip: str, web: str, tmp_path: Path
) -> None:
    assert local(config, web, tmp_path / "blip", limit=1).noise_ratio is not None
    ranked = resolve(preset="blip2", options={"captioner": captioner, "filter": clip})
    assert local(ranked, web, tmp_path / "blip2", limit=1).noise_ratio is None


def write_wds(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Write any members as a tar."""
    import tarfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
