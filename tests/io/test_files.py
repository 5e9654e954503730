from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from capfilt.errors import CommitError, InputError
from capfilt.io import files, publish


def fail_to_publish(url: str) -> Path:
    """Write half a file and raise; the temporary path where it was."""
    with contextlib.suppress(KeyError), publish.publishing(url) as publication:
        publication.path.write_bytes(b"half")
        temporary = publication.path
        raise KeyError
    return temporary


def test_publishing_ends_cleanly_file_is_whole_with_its_checksum(place: str) -> None:
    url = files.join(place, "data", "a/0.bin")
    with publish.publishing(url) as publication:
        publication.path.write_bytes(b"first ")
        with publication.path.open("ab") as file:
            file.write(b"second")
        temporary = publication.path
        assert files.info(url) is None
    assert files.read_bytes(url) == b"first second"
    sha256 = hashlib.sha256(b"first second").hexdigest()
    assert publication.published == publish.Published(url, 12, sha256)
    assert files.digest(url) == (12, sha256)
    assert not temporary.exists()


def test_publishing_fails_inside_nothing_is_left(place: str) -> None:
    temporary = fail_to_publish(files.join(place, "0.bin"))
    assert files.find(place) == []
    assert not temporary.exists()


def test_publishing_over_an_older_file_replaces_it(place: str) -> None:
    url = files.join(place, "0.json")
    publish.write_bytes(url, b"old and long")
    publish.write_bytes(url, b"new")
    assert files.read_bytes(url) == b"new"
    assert [entry.name for entry in files.find(place)] == ["0.json"]


def test_publishing_fails_over_an_older_file_keeps_it(place: str) -> None:
    url = files.join(place, "0.json")
    publish.write_bytes(url, b"old")
    fail_to_publish(url)
    assert files.read_bytes(url) == b"old"


def test_publishing_local_builds_beside_its_target(tmp_path: Path) -> None:
    with publish.publishing(str(tmp_path / "0.tar")) as publication:
        assert publication.path.parent == tmp_path
        assert publication.path.name.startswith(".0.tar.")


def test_publishing_two_attempts_at_once_both_succeed(tmp_path: Path) -> None:
    url = str(tmp_path / "0.tar")
    with publish.publishing(url) as first, publish.publishing(url) as second:
        first.path.write_bytes(b"same")
        second.path.write_bytes(b"same")
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_publishing_disk_refuses_is_a_commit_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(CommitError, match=r"file/0\.tar"),
        publish.publishing(str(tmp_path / "file" / "0.tar")),
    ):
        pass


def test_publishing_write_runs_out_of_space_is_a_commit_error(tmp_path: Path) -> None:
    url = str(tmp_path / "0.tar")
    with pytest.raises(CommitError, match=r"0\.tar: No space left"), publish.publishing(url):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_publishing_killed_leaves_no_target_and_is_cleaned(tmp_path: Path) -> None:
    script = (
        "import os, sys, signal\n"
        "from capfilt.io import publish\n"
        "with publish.publishing(sys.argv[1]) as publication:\n"
        "    publication.path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    url = str(tmp_path / "data" / "0.tar")
    done = subprocess.run([sys.executable, "-c", script, url], check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left.name.startswith(".0.tar.")
    with publish.publishing(url):  # a living writer's file, beside the dead one's
        assert publish.clean_temporary(str(tmp_path)) == [str(left)]
        assert len(list((tmp_path / "data").glob(".*.tmp"))) == 1


def test_publishing_to_a_store_killed_is_cleaned_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal\n"
        "from capfilt.io import publish\n"
        "with publish.publishing('memory://x/0.tar') as publication:\n"
        "    publication.path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "notes.tmp").touch()  # somebody else's
    with publish.publishing("memory://x/0.tar") as publication:
        publish.clean_for_stores()
        assert set(tmp_path.iterdir()) == {publication.path, tmp_path / "notes.tmp"}


def test_clean_temporary_file_of_another_host_goes_after_an_hour(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    left = tmp_path / "ledger" / ".0.parquet.elsewhere-17-0123abcd.tmp"
    left.touch()
    assert publish.clean_temporary(str(tmp_path)) == []
    hour_ago = time.time() - 3601
    os.utime(left, (hour_ago, hour_ago))
    assert publish.clean_temporary(str(tmp_path)) == [str(left)]


def test_process_that_has_ended_is_not_alive_though_nobody_asked_for_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print('here', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert publish.is_alive(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not publish.is_alive(process.pid)


def test_clean_temporary_finished_files_stay(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("0.tar", "notes.tmp", ".hidden", ".notes.v2.tmp", "data/.notes.v2.tmp"):
        (tmp_path / name).write_text("x")
    assert publish.clean_temporary(str(tmp_path)) == []
    assert len(list(tmp_path.rglob("*.tmp"))) == 3


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


def test_resolve_unknown_protocol_is_an_input_error() -> None:
    with pytest.raises(InputError, match="nonsense://x: Protocol not known"):
        files.read_bytes("nonsense://x")


def test_resolve_server_not_there_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/x"):
        files.read_bytes("http://127.0.0.1:9/x")


def test_pipe_url_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not found"):
        files.read_bytes("pipe:touch ran")
    assert list(tmp_path.iterdir()) == []


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
