from __future__ import annotations

import time
from pathlib import Path

import pytest

from capfilt.errors import CommitError, InputError
from capfilt.io import files, publish


def test_list_folder_after_another_writer_shows_its_file(place: str) -> None:
    publish.write_bytes(files.join(place, "a.txt"), b"1")
    publish.write_bytes(files.join(place, "sub", "b.txt"), b"22")
    first = files.list_folder(place)
    assert [(e.name, e.is_folder) for e in first] == [("a.txt", False), ("sub", True)]
    assert first[0].size_bytes == 1
    assert first[0].url == files.join(place, "a.txt")
    publish.write_bytes(files.join(place, "c.txt"), b"333")
    assert [entry.name for entry in files.list_folder(place)] == ["a.txt", "c.txt", "sub"]


def test_find_below_a_folder_names_are_relative(place: str) -> None:
    publish.write_bytes(files.join(place, "x", "a.json"), b"1")
    publish.write_bytes(files.join(place, "b.json"), b"2")
    assert [entry.name for entry in files.find(place)] == ["b.json", "x/a.json"]
    assert files.read_bytes(files.find(place)[1].url) == b"1"


def test_find_nowhere_is_empty(place: str) -> None:
    assert files.find(files.join(place, "nowhere")) == []
    assert files.find_names(files.join(place, "nowhere")) == []


def test_find_names_are_those_of_find(place: str) -> None:
    for name in ("x/a.json", "x-y.json", "b.json"):
        publish.write_bytes(files.join(place, name), b"1")
    assert files.find_names(place) == ["b.json", "x-y.json", "x/a.json"]


def test_find_passes_over_links_to_nothing_and_to_folders(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text("{}")
    for name, target in (("1.json", "0.json"), ("2.json", "2.json"), ("3", "."), ("4", "nowhere")):
        (tmp_path / name).symlink_to(target)
    assert [entry.name for entry in files.find(str(tmp_path))] == ["0.json", "1.json"]
    assert files.find_names(str(tmp_path)) == ["0.json", "1.json"]


def test_version_of_a_rewritten_file_changes(place: str) -> None:
    url = files.join(place, "a.txt")
    publish.write_bytes(url, b"1")
    before = files.info(url)
    time.sleep(0.01)
    publish.write_bytes(url, b"2")
    after = files.info(url)
    assert before is not None
    assert after is not None
    assert before.version != after.version
    [listed] = files.list_folder(place)
    assert listed.version == after.version


def test_glob_gives_urls_of_the_same_kind(place: str) -> None:
    for name in ("a1.tar", "a2.tar", "b.tar"):
        publish.write_bytes(files.join(place, name), b"x")
    found = files.glob(files.join(place, "a*.tar"))
    assert found == [files.join(place, "a1.tar"), files.join(place, "a2.tar")]


def test_remove_twice_is_no_error(place: str) -> None:
    url = files.join(place, "a.txt")
    publish.write_bytes(url, b"1")
    files.remove(url)
    assert not files.exists(url)
    files.remove(url)


def test_open_read_missing_file_is_one_line(place: str) -> None:
    url = files.join(place, "gone.tar")
    with pytest.raises(InputError, match=r"gone\.tar: not found"):
        files.open_read(url).read()
    with pytest.raises(InputError, match=r"gone\.tar: not found"):
        files.read_bytes(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/x/", "s3://bucket/x"),
        ("memory://", "memory://"),
        ("file:///data/x", "/data/x"),
        ("/data/x/", "/data/x"),
    ],
)
def test_absolute_of_absolute_places(url: str, expected: str) -> None:
    assert files.absolute(url) == expected


def test_absolute_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.absolute("x/{0..2}.tar") == f"{tmp_path}/x/{{0..2}}.tar"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/x/0.tar", "s3://bucket/x"),
        ("memory://0.tar", "memory://"),
        ("/0.tar", "/"),
        ("0.tar", "."),
    ],
)
def test_parent_of_places(url: str, expected: str) -> None:
    assert files.parent(url) == expected


def test_list_folder_sees_what_another_process_put(s3: str) -> None:
    import boto3

    publish.write_bytes(f"{s3}/in/a.tar", b"x")
    assert [entry.name for entry in files.list_folder(f"{s3}/in")] == ["a.tar"]
    bucket = s3.removeprefix("s3://")
    client = boto3.client("s3", region_name="us-east-1")
    client.put_object(Bucket=bucket, Key="in/b.tar", Body=b"x")
    client.put_object(Bucket=bucket, Key="in/a.tar", Body=b"longer")
    found = [(entry.name, entry.size_bytes) for entry in files.list_folder(f"{s3}/in")]
    assert found == [("a.tar", 6), ("b.tar", 1)]
    assert [entry.name for entry in files.find(f"{s3}/in")] == ["a.tar", "b.tar"]
    with files.open_read(f"{s3}/in/a.tar") as file:
        assert file.read() == b"longer"


def test_list_folder_of_a_missing_bucket_is_one_line(s3_server: None) -> None:
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/in: not found$"):
        files.list_folder("s3://no-such-bucket/in")
    with pytest.raises(CommitError, match=r"^s3://no-such-bucket/x\.json: "):
        publish.write_bytes("s3://no-such-bucket/x.json", b"x")
