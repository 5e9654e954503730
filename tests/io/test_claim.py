"""Who gets to write a file that several want to write."""

from __future__ import annotations

import errno
import fcntl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from capfilt.errors import CommitError
from capfilt.io import claim, files, publish
from tests.io.conftest import place, s3, s3_server  # noqa: F401 - fixtures

AT_ONCE = 8


def all_at_once(act: Callable[[int], bool]) -> list[int]:
    """Who of several threads was told that it has written."""
    everybody = threading.Barrier(AT_ONCE)

    def attempt(number: int) -> bool:
        everybody.wait()
        return act(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [number for number, won in enumerate(pool.map(attempt, range(AT_ONCE))) if won]


def test_create_writes_one_of_two(place: str) -> None:  # noqa: F811
    assert claim.create(f"{place}/a", b"first")
    assert not claim.create(f"{place}/a", b"second")
    assert claim.read(f"{place}/a") == b"first"


def test_replace_writes_over_what_was_seen_and_nothing_else(place: str) -> None:  # noqa: F811
    assert not claim.replace(f"{place}/a", b"seen", b"new")
    assert claim.read(f"{place}/a") is None
    claim.create(f"{place}/a", b"seen")
    assert claim.replace(f"{place}/a", b"seen", b"new")
    assert not claim.replace(f"{place}/a", b"seen", b"another")
    assert claim.read(f"{place}/a") == b"new"
    assert [entry.name for entry in files.find(place)] == ["a"]


def test_one_of_many_creates_and_one_of_many_replaces(tmp_path: Path) -> None:
    for turn in range(50):
        url = str(tmp_path / str(turn))
        [first] = all_at_once(partial(_create, url))
        assert claim.read(url) == b"by %d" % first
        [second] = all_at_once(partial(_replace, url, b"by %d" % first))
        assert claim.read(url) == b"then by %d" % second
    assert list(tmp_path.glob(".*")) == []


def _create(url: str, number: int) -> bool:
    return claim.create(url, b"by %d" % number)


def _replace(url: str, old: bytes, number: int) -> bool:
    return claim.replace(url, old, b"then by %d" % number)


def test_file_that_another_replaces_meanwhile_stays_the_others(tmp_path: Path) -> None:
    """It is looked at under the lock, whoever has had that until then."""
    file = tmp_path / "a"
    file.write_bytes(b"dead")
    with file.open("rb+") as locked, ThreadPoolExecutor(1) as pool:
        fcntl.flock(locked, fcntl.LOCK_EX)
        late = pool.submit(claim.replace, str(file), b"dead", b"mine")
        with pytest.raises(TimeoutError):
            late.result(timeout=0.2)
        publish.write_bytes(str(file), b"living")
        fcntl.flock(locked, fcntl.LOCK_UN)
        assert not late.result(timeout=30)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"living"


def test_file_is_there_while_many_replace_it(tmp_path: Path) -> None:
    """Who found none would create one, and two would have written."""
    url = str(tmp_path / "a")
    claim.create(url, b"0")
    seen: list[bytes | None] = []

    def attempt(number: int) -> None:
        for turn in range(100):
            found = claim.read(url)
            seen.append(found)
            claim.replace(url, found or b"", b"%d of %d" % (turn, number))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(attempt, range(AT_ONCE)))
    assert len(seen) == 100 * AT_ONCE
    assert None not in seen


def test_file_system_without_links_decides_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    url = str(tmp_path / "a")
    [winner] = all_at_once(partial(_create, url))
    assert claim.read(url) == b"by %d" % winner
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_file_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CommitError, match="file"):
        claim.create(str(tmp_path / "file" / "a"), b"")
