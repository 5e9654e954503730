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

from capfilt.errors import CommitError
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


def test_publishing_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    for name in ("k" * 255, "\u732b" * 85):
        publish.write_bytes(str(tmp_path / name), b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"


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
