from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import CommitError
from capfilt.io import files, publish
from capfilt.io.commits import (
    Commit,
    Failure,
    InputRecord,
    OutputRecord,
    list_commits,
    list_failures,
    read_commit,
    remove_commit,
    remove_failure,
    sizes_of,
    write_commit,
    write_failure,
)
from capfilt.record import ModelIdentity
from capfilt.shard import Form, InputShard

INPUT = InputRecord.of(InputShard("laion/00000", Form.TAR, "s3://b/in/00000.tar", 7, "etag:abc"))


def commit(shard: str = "laion/00000") -> Commit:
    return Commit(
        shard=shard,
        input=INPUT,
        fingerprint="f1",
        models={"captioner": ModelIdentity("BlipForConditionalGeneration", "c" * 64, "blip")},
        counts={"read": 6, "kept": 3, "dropped": 2, "failed": 1, "texts": {"web": {"kept": 1}}},
        outputs={f"data/{shard}.tar": OutputRecord(10, "d" * 64)},
        telemetry={"seconds": 1.5, "worker": "host:1"},
    )


def test_commit_comes_back_as_it_was(place: str) -> None:
    write_commit(place, commit("laion/00000"))
    write_commit(place, commit("a.b"))
    assert list_commits(place) == {"a.b": commit("a.b"), "laion/00000": commit("laion/00000")}
    assert read_commit(place, "laion/00000") == commit("laion/00000")


def test_list_commits_of_a_new_output_is_empty(place: str) -> None:
    assert list_commits(place) == {}
    assert list_failures(place) == {}
    assert read_commit(place, "0") is None


def test_list_commits_sees_what_another_writer_did(place: str) -> None:
    write_commit(place, commit("0"))
    assert list(list_commits(place)) == ["0"]
    write_commit(place, commit("1"))
    remove_commit(place, "0")
    remove_commit(place, "0")
    assert list(list_commits(place)) == ["1"]


def test_sizes_are_those_of_the_files_that_are_there(place: str) -> None:
    publish.write_bytes(files.join(place, "data/a/0.tar"), b"123")
    size_of = sizes_of(place)
    assert size_of("data/a/0.tar") == 3
    assert size_of("data/1.tar") is None
    assert size_of("data/a/0.tar/b") is None


def test_size_of_what_is_no_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/folder.tar").mkdir()
    (tmp_path / "data/itself.tar").symlink_to(tmp_path / "data/itself.tar")
    size_of = sizes_of(str(tmp_path))
    for name in ("folder", "itself", "a" * 300, "nul\0"):
        assert size_of(f"data/{name}.tar") is None


def test_list_commits_of_many(tmp_path: Path) -> None:
    for i in range(200):
        write_commit(str(tmp_path), commit(f"{i:05d}"))
    assert list(list_commits(str(tmp_path))) == [f"{i:05d}" for i in range(200)]


def test_list_commits_passes_over_half_written_ones(tmp_path: Path) -> None:
    write_commit(str(tmp_path), commit("0"))
    (tmp_path / "commits" / ".1.json.try1.tmp").write_bytes(b"{")
    assert list(list_commits(str(tmp_path))) == ["0"]


def test_write_commit_is_canonical_json(tmp_path: Path) -> None:
    write_commit(str(tmp_path), commit("0"))
    content = (tmp_path / "commits" / "0.json").read_text()
    assert content == json.dumps(json.loads(content), sort_keys=True, indent=1) + "\n"
    assert json.loads(content)["outputs"] == {"data/0.tar": {"size_bytes": 10, "sha256": "d" * 64}}
    write_commit(str(tmp_path), commit("0"))
    assert (tmp_path / "commits" / "0.json").read_text() == content


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"read": 7, "kept": 3, "dropped": 2, "failed": 1}, "7 samples read, but 3 kept"),
        ({"read": 5, "kept": 3, "dropped": 2}, "lack failed"),
    ],
)
def test_commit_counts_that_do_not_add_up_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(CommitError, match=message):
        replace(commit(), counts=counts)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"shard": "0"}',
        b"\xff",
        json.dumps({"shard": "0", "input": 3, "surprise": 1}).encode(),
    ],
)
def test_list_commits_unreadable_one_is_named(tmp_path: Path, content: bytes) -> None:
    write_commit(str(tmp_path), commit("0"))
    (tmp_path / "commits" / "0.json").write_bytes(content)
    with pytest.raises(CommitError, match=r"commits/0\.json: not a record .* remove it"):
        list_commits(str(tmp_path))


def test_list_commits_one_with_wrong_counts_is_named(tmp_path: Path) -> None:
    write_commit(str(tmp_path), commit("0"))
    path = tmp_path / "commits" / "0.json"
    path.write_text(path.read_text().replace('"read": 6', '"read": 9'))
    with pytest.raises(CommitError, match=r"commits/0\.json: .*9 samples read"):
        list_commits(str(tmp_path))


def test_failure_comes_back_as_it_was(place: str) -> None:
    failure = Failure("laion/00000", INPUT, 3, "00000.tar: a truncated tar")
    write_failure(place, failure)
    assert list_failures(place) == {"laion/00000": failure}
    assert list_commits(place) == {}
    remove_failure(place, "laion/00000")
    remove_failure(place, "laion/00000")
    assert list_failures(place) == {}


def test_failure_of_a_file_whose_name_is_not_utf8_comes_back_as_it_was(tmp_path: Path) -> None:
    failure = Failure("0", INPUT, 3, "/in/0/caf\udce9.jpg: permission denied")
    write_failure(str(tmp_path), failure)
    assert list_failures(str(tmp_path)) == {"0": failure}


def test_write_commit_where_none_can_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "commits").write_text("in the way")
    with pytest.raises(CommitError, match=r"commits/0\.json: ") as raised:
        write_commit(str(tmp_path), commit("0"))
    assert "\n" not in str(raised.value)
    assert files.find(str(tmp_path))[0].name == "commits"
