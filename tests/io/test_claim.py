"""Who gets to write a file that several want to write."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from capfilt.errors import CommitError
from capfilt.io import claim, files
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


def test_file_of_another_that_was_taken_away_by_mistake_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written between the look and the taking away."""
    file = tmp_path / "a"
    file.write_bytes(b"dead")
    look = claim.read

    def read_then_overtaken(url: str) -> bytes | None:
        found = look(url)
        file.write_bytes(b"living")
        return found

    monkeypatch.setattr(claim, "read", read_then_overtaken)
    assert not claim.replace(str(file), b"dead", b"mine")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"living"


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
