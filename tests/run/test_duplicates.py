from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from capfilt.config import ImageConfig, RunConfig, resolve
from capfilt.errors import CommitError, InputError
from capfilt.io.commits import list_failures
from capfilt.io.inputs import find_shards
from capfilt.record import Sample
from capfilt.run import duplicates
from capfilt.run.duplicates import duplicates_among
from capfilt.run.job import run
from capfilt.run.status import status
from capfilt.run.verify import verify
from capfilt.run.where import Where
from capfilt.shard import InputShard
from tests.run.conftest import commits, hashes, ledger_rows
from tests.select.test_pictures import photo, scaled


@pytest.fixture
def copies(tmp_path: Path) -> str:
    """Pictures 0 to 3; then 1 again, a smaller 2, a tiny 4 that fails, 4 itself, and 5."""
    (tmp_path / "web").mkdir()
    tiny = photo(4, side=12)
    shards = {
        "a": [photo(n) for n in range(4)],
        "b": [photo(1), scaled(2), tiny, photo(4), photo(5)],
    }
    for name, images in shards.items():
        with tarfile.open(tmp_path / "web" / f"{name}.tar", "w") as tar:
            for place, image in enumerate(images):
                for ending, content in (("jpg", image), ("txt", b"a text")):
                    member = tarfile.TarInfo(f"{name}{place}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(tmp_path / "web")


def run_with(copies: str, output: Path, captioner: str, *overrides: str, **where: bool) -> None:
    config = resolve(options={"captioner": captioner, "filter": "none"}, overrides=overrides)
    run(config, Where(input=copies, output=str(output), local=True, **where))
    assert verify(str(output)).problems == ()
    assert status(str(output)).done == 2


def deduped(how: str, *overrides: str) -> RunConfig:
    options = {"captioner": "stub", "filter": "none"}
    return resolve(options=options, overrides=[f"images.dedupe={how}", *overrides])


def reasons(output: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in ledger_rows(output) if row["reason"]}


def test_run_drops_copies_before_a_model_sees_them(
    copies: str, captioner: str, tmp_path: Path
) -> None:
    run_with(copies, tmp_path / "exact", captioner, "images.dedupe=exact")
    small = "image_too_small"
    assert reasons(tmp_path / "exact") == {"b0": "duplicate_image", "b2": small}
    run_with(copies, tmp_path / "looks", captioner, "images.dedupe=perceptual")
    near = "near_duplicate_image"
    assert reasons(tmp_path / "looks") == {"b0": "duplicate_image", "b1": near, "b2": small}
    rows = [row for row in ledger_rows(tmp_path / "looks") if row["key"] in ("b0", "b1")]
    assert [(row["source"], row["text"], row["verdict"]) for row in rows] == [
        ("web", "a text", "dropped")
    ] * 2  # no caption was made
    counts = commits(tmp_path / "looks")["b"]["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"], counts["failed"]) == (5, 2, 2, 1)


def test_run_resumes_with_the_same_duplicates(copies: str, captioner: str, tmp_path: Path) -> None:
    run_with(copies, tmp_path / "out", captioner, "images.dedupe=exact")
    before = hashes(tmp_path / "out")
    (tmp_path / "out/commits/b.json").unlink()
    run_with(copies, tmp_path / "out", captioner, "images.dedupe=exact")
    assert hashes(tmp_path / "out") == before


def test_images_are_hashed_once(
    copies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = find_shards(copies).shards
    config, output = deduped("perceptual"), str(tmp_path / "out")
    found = duplicates_among(shards[:1], config, output).duplicates
    assert {name: len(of_shard) for name, of_shard in found.items()} == {"a": 0}
    looked: list[str] = []
    read = duplicates.read_samples
    monkeypatch.setattr(
        duplicates, "read_samples", lambda shard, _: (looked.append(shard.id), read(shard, _))[1]
    )
    grown = duplicates_among(shards, config, output)
    assert {name: len(of_shard) for name, of_shard in grown.duplicates.items()} == {"a": 0, "b": 2}
    assert looked == ["b"]  # an input that has grown costs what is new
    changed = [replace(shards[0], version="another"), shards[1]]
    assert duplicates_among(changed, config, output) == grown
    exact = duplicates_among(changed, deduped("exact"), output)
    assert exact.duplicates["b"] == {0: "duplicate_image"}
    assert looked == ["b", "a", "a", "b"]
    (tmp_path / "out/looks/b.npz").write_text("{")
    assert duplicates_among(changed, deduped("exact"), output) == exact
    assert looked[4:] == ["b"]


def test_an_image_that_fails_is_nobodys_original(
    copies: str, captioner: str, tmp_path: Path
) -> None:
    """Of the large picture a run takes the small copy alone, and of the cut one the whole."""
    (tmp_path / "web/a.tar").unlink()
    broken = bytearray(photo(8, side=300))
    images = [photo(7, side=400), photo(7, side=120), bytes(broken[:-2000]), photo(8)]
    with tarfile.open(tmp_path / "web/a.tar", "w") as tar:
        for place, image in enumerate(images):
            for ending, content in (("jpg", image), ("txt", b"a text")):
                member = tarfile.TarInfo(f"a{place}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    limit = f"images.max_pixels={300 * 300}"
    run_with(copies, tmp_path / "out", captioner, "images.dedupe=perceptual", limit)
    assert reasons(tmp_path / "out") == {
        "a0": "image_too_large",
        "a2": "image_corrupt",
        "b2": "image_too_small",
    }


def test_an_evaluation_image_is_nobodys_original(
    copies: str, captioner: str, tmp_path: Path
) -> None:
    """What is like it, but not enough to be excluded itself, stays; its copies are of the set."""
    (tmp_path / "set.txt").write_text(f"{hashlib.sha256(photo(2)).hexdigest()}\n")
    exclude = f"images.exclude=[{tmp_path / 'set.txt'}]"
    run_with(copies, tmp_path / "out", captioner, "images.dedupe=perceptual", exclude)
    assert reasons(tmp_path / "out") == {
        "a2": "evaluation_image",
        "b0": "duplicate_image",
        "b2": "image_too_small",
    }
    (tmp_path / "set.txt").write_text(f"{hashlib.sha256(photo(1)).hexdigest()}\n")
    run_with(copies, tmp_path / "two", captioner, "images.dedupe=exact", exclude)
    held = dict.fromkeys(("a1", "b0"), "evaluation_image")
    assert reasons(tmp_path / "two") == held | {"b2": "image_too_small"}


def test_shard_that_cannot_be_read_has_failed_and_the_others_go_on(
    copies: str, captioner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not its worker could read it: a copy and its original would both stay."""
    out, reads = tmp_path / "out", duplicates.read_samples

    def read(shard: InputShard, limits: ImageConfig) -> Iterator[Sample]:
        if shard.id == "a":
            raise InputError(f"{shard.url}: the store has no time")
        return reads(shard, limits)

    config = resolve(
        options={"captioner": captioner, "filter": "none"}, overrides=["images.dedupe=exact"]
    )
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "read_samples", read)
        summary = run(config, Where(input=copies, output=str(out), local=True))
    [failed] = summary.shards_failed
    assert (failed.shard.id, failed.attempts) == ("a", 3)
    assert failed.error.endswith("a.tar: the store has no time")
    assert (summary.exit_code, summary.left_by_limit) == (1, 0)
    assert list(commits(out)) == ["b"]
    assert [failure.shard for failure in list_failures(str(out)).values()] == ["a"]
    assert reasons(out) == {"b2": "image_too_small"}  # b0 is the only one of its looks
    with monkeypatch.context() as patch:  # the only one that is left, on Ray: none is started
        patch.setattr(duplicates, "read_samples", read)
        again = run(config, Where(input=copies, output=str(out)))
    assert (again.exit_code, again.shards_done) == (1, 0)
    run_with(copies, out, captioner, "images.dedupe=exact")
    assert list(commits(out)) == ["a", "b"]
    assert not list_failures(str(out))
    assert reasons(out) == {"b2": "image_too_small"}  # as where INPUT has grown by a


def test_reads_that_fail_or_hang_once_change_nothing(
    copies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = find_shards(copies).shards
    reads, released = duplicates.read_samples, threading.Event()
    seen: list[str] = []

    def read(shard: InputShard, limits: ImageConfig) -> Iterator[Sample]:
        seen.append(shard.id)
        yield from islice(reads(shard, limits), 2)
        if seen.count(shard.id) == 1:
            if shard.id == "b":
                released.wait()
            raise InputError("the connection was reset")
        yield from islice(reads(shard, limits), 2, None)

    monkeypatch.setattr(duplicates, "read_samples", read)
    config = deduped("exact", "compute.read_timeout_s=10")
    try:
        found = duplicates_among(shards, config, str(tmp_path / "out"))
    finally:
        released.set()
    assert found == ({"a": {}, "b": {0: "duplicate_image"}}, {})
    assert seen == ["a", "b", "a", "b"]


def test_run_drops_images_of_an_evaluation_set(copies: str, captioner: str, tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/x.jpg").write_bytes(photo(1, side=300))
    exclude = f"images.exclude=[{tmp_path / 'benchmark'}]"
    run_with(copies, tmp_path / "out", captioner, exclude)
    held = "evaluation_image"
    assert reasons(tmp_path / "out") == {"a1": held, "b0": held, "b2": "image_too_small"}
    (tmp_path / "benchmark/y.jpg").write_bytes(photo(3))
    with pytest.raises(CommitError, match=r"images.exclude: sha256"):
        run_with(copies, tmp_path / "out", captioner, exclude)
    run_with(copies, tmp_path / "out", captioner, exclude, overwrite=True)
    assert reasons(tmp_path / "out")["a3"] == held
