from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from capfilt.errors import InputError
from capfilt.io.tar import TarWriter
from capfilt.record import Annotated, Sample, Score, Source, Text, Verdict
from capfilt.select.splice import NotPlainError, splice
from capfilt.shard import Form, InputShard

LONGEST = 100  # characters of a name in a plain header


def annotated(key: str, *contents: str) -> Annotated:
    texts = tuple(
        Text(Source.SYNTHETIC, index, content, Score(0.75), Verdict.KEPT)
        for index, content in enumerate(contents)
    )
    web = Text(Source.WEB, 0, "web", Score(0.25), Verdict.DROPPED)
    sample = Sample(key, key.encode() * 100, "jpg", (web,), {"width": 3, "note": key})
    return Annotated(sample, (web, *texts), texts, Verdict.KEPT)


def write(path: Path, *samples: Annotated, images: bool = True) -> InputShard:
    with TarWriter(path, images=images) as tar:
        for sample in samples:
            tar.write(sample)
    return InputShard("00000", Form.TAR, str(path), path.stat().st_size, "mtime:1")


def same(number: int, sample: Sample) -> Annotated:
    raise AssertionError(f"nothing changes, but sample {number} was asked for")


def cut(
    shard: InputShard,
    keys: list[str],
    path: Path,
    *,
    kept: list[bool],
    changed: list[bool] | None = None,
    annotate: Callable[[int, Sample], Annotated] = same,
    images: bool = True,
) -> None:
    flags = np.array(changed if changed is not None else [False] * len(kept), dtype=bool)
    splice(shard, keys, np.array(kept, dtype=bool), flags, annotate, path, images=images)


@pytest.mark.parametrize("images", [True, False])
def test_splice_writes_what_a_writer_would_with_names_as_long_as_a_header_holds(
    images: bool, tmp_path: Path
) -> None:
    keys = ["a", "b/v1.0", "c" * (LONGEST - len(".json")), "d"]
    shard = write(tmp_path / "old.tar", *(annotated(key, "one", f"of {key}") for key in keys))

    def annotate(number: int, sample: Sample) -> Annotated:
        assert sample.metadata == {"width": 3, "note": keys[number]}
        found = annotated(keys[number], "another, longer than what it had before")
        return replace(found, sample=replace(found.sample, metadata=sample.metadata))

    new = tmp_path / "new.tar"
    kept, changed = [False, True, True, True], [False, True, True, False]
    cut(shard, keys, new, kept=kept, changed=changed, annotate=annotate, images=images)
    expected = [annotate(number, annotated(keys[number]).sample) for number in (1, 2)]
    unchanged = annotated("d", "one", "of d")
    write(tmp_path / "expected.tar", *expected, unchanged, images=images)
    assert new.read_bytes() == (tmp_path / "expected.tar").read_bytes()


def test_splice_reads_from_a_store_as_from_a_file(tmp_path: Path) -> None:
    samples = [annotated(key, "one") for key in "abc"]
    shard = write(tmp_path / "old.tar", *samples)
    store, path = fsspec.url_to_fs(f"memory://{tmp_path.name}/old.tar")
    store.pipe_file(path, Path(shard.url).read_bytes())
    kept = [True, False, True]
    cut(
        replace(shard, place=f"memory://{tmp_path.name}/old.tar"),
        list("abc"),
        tmp_path / "new.tar",
        kept=kept,
    )
    write(tmp_path / "expected.tar", samples[0], samples[2])
    assert (tmp_path / "new.tar").read_bytes() == (tmp_path / "expected.tar").read_bytes()


def test_splice_of_nothing_is_an_empty_tar(tmp_path: Path) -> None:
    shard = write(tmp_path / "old.tar", annotated("a", "one"))
    cut(shard, ["a"], tmp_path / "new.tar", kept=[False])
    write(tmp_path / "expected.tar")
    assert (tmp_path / "new.tar").read_bytes() == (tmp_path / "expected.tar").read_bytes()


def test_splice_leaves_longer_names_to_others(tmp_path: Path) -> None:
    key = "c" * LONGEST
    shard = write(tmp_path / "old.tar", annotated(key, "one"))
    with pytest.raises(NotPlainError):
        cut(shard, [key], tmp_path / "new.tar", kept=[True])


def test_splice_leaves_a_text_before_its_json_to_others(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "old.tar") as tar:
        for key in "ab":
            for ext in ("txt", "json"):
                tar.add(f"{key}.{ext}", b'{"caption": "one"}')
    shard = InputShard("00000", Form.TAR, str(tmp_path / "old.tar"), 1, "mtime:1")
    changed = [True, True]
    with pytest.raises(NotPlainError):
        cut(
            shard,
            ["a", "b"],
            tmp_path / "new.tar",
            kept=changed,
            changed=changed,
            annotate=lambda number, _: annotated("ab"[number], "two"),
        )


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("left", [0, 100, 512, 600, 3000])
def test_splice_of_a_truncated_tar_is_an_error(left: int, kept: bool, tmp_path: Path) -> None:
    path = tmp_path / "old.tar"
    shard = write(path, annotated("a", "one"), annotated("b", "one"))
    with tarfile.open(path) as tar:
        end = tar.getmember("b.txt").offset_data + tarfile.BLOCKSIZE
    path.write_bytes(path.read_bytes()[: min(left, end)])
    with pytest.raises(InputError, match="truncated"):
        cut(shard, ["a", "b"], tmp_path / "new.tar", kept=[kept, kept])


@pytest.mark.parametrize("keys", [["a"], ["a", "c"], ["a", "b", "c"]])
def test_splice_of_other_samples_than_the_ledgers_is_an_error(
    keys: list[str], tmp_path: Path
) -> None:
    shard = write(tmp_path / "old.tar", annotated("a", "one"), annotated("b", "one"))
    with pytest.raises(InputError, match="ledger"):
        cut(shard, keys, tmp_path / "new.tar", kept=[True] * len(keys))
