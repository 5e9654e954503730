"""Commits: the record, written last, that makes a shard's outputs count; and failures, their
counterpart for shards that were given up. Canonical JSON, one file per shard.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from capfilt.errors import CommitError
from capfilt.io import files, outputs, publish
from capfilt.io.local import size_of
from capfilt.io.store import local_path, storage_errors
from capfilt.jsontree import parse_json
from capfilt.record import ModelIdentity
from capfilt.shard import InputShard

# Reading a commit is waiting for the store: 100,000 of them at 20 ms and 32 at once take a minute.
_READERS = 32
_AT_ONCE = 1000  # handed to them

RecordT = TypeVar("RecordT", "Commit", "Failure")


@dataclass(frozen=True, slots=True)
class InputRecord:
    """Which input a shard was made from; another version of it is another shard."""

    url: str
    form: str
    size_bytes: int
    version: str

    @classmethod
    def of(cls, shard: InputShard) -> InputRecord:
        """The record of an input shard."""
        return cls(shard.url, str(shard.form), shard.size_bytes, shard.version)


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """A published file as its writer made it."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What a shard was made from, how, and what came out.

    `counts` holds at least read, kept, dropped and failed samples, and read is their sum.

    Raises:
        CommitError: The counts do not add up: samples were lost or counted twice.
    """

    shard: str
    input: InputRecord
    fingerprint: str
    models: Mapping[str, ModelIdentity]  # by role: captioner, filter
    counts: Mapping[str, Any]
    outputs: Mapping[str, OutputRecord]  # by path relative to the output
    telemetry: Mapping[str, Any] = field(default_factory=dict)  # seconds, worker; decides nothing

    def __post_init__(self) -> None:
        missing = {"read", "kept", "dropped", "failed"} - self.counts.keys()
        if missing:
            raise CommitError(f"{self.shard}: the counts lack {', '.join(sorted(missing))}")
        parts = {name: self.counts[name] for name in ("kept", "dropped", "failed")}
        if self.counts["read"] != sum(parts.values()):
            shown = " + ".join(f"{count} {name}" for name, count in parts.items())
            raise CommitError(f"{self.shard}: {self.counts['read']} samples read, but {shown}")


@dataclass(frozen=True, slots=True)
class Failure:
    """A shard that was given up after its last attempt."""

    shard: str
    input: InputRecord
    attempts: int
    error: str  # one line


def write_commit(output: str, commit: Commit) -> None:
    """Make a shard's outputs count.

    Raises:
        CommitError: The commit cannot be written.
    """
    _write(files.join(output, outputs.commit_path(commit.shard)), commit)


def read_commit(output: str, shard_id: str) -> Commit | None:
    """The commit of one shard; None when it has none.

    Raises:
        CommitError: The commit cannot be read.
    """
    url = files.join(output, outputs.commit_path(shard_id))
    return _read(url, _commit_of) if files.exists(url) else None


def list_commits(output: str) -> dict[str, Commit]:
    """Every commit of an output by shard id, sorted; from one listing.

    Raises:
        CommitError: A commit cannot be read.
    """
    return {commit.shard: commit for commit in read_commits(output)}


def read_commits(output: str) -> Iterator[Commit]:
    """Every commit of an output, sorted by its path, a few in memory at a time.

    Raises:
        CommitError: A commit cannot be read.
    """
    return _read_all(output, outputs.COMMITS, _commit_of)


def remove_commit(output: str, shard_id: str) -> None:
    """Make a shard's outputs not count any more."""
    files.remove(files.join(output, outputs.commit_path(shard_id)))


def retire(output: str, shard_id: str, successors: Collection[str]) -> None:
    """Take back a stale commit, and then its files that nothing will replace.

    Args:
        output: The output.
        shard_id: Of the shard that will be made again.
        successors: Paths of the files that it will have.
    """
    stale = read_commit(output, shard_id)
    remove_commit(output, shard_id)
    for path in set(stale.outputs) - set(successors) if stale else ():
        files.remove(files.join(output, path))


def write_failure(output: str, failure: Failure) -> None:
    """Record that a shard was given up.

    Raises:
        CommitError: The record cannot be written.
    """
    _write(files.join(output, outputs.failure_path(failure.shard)), failure)


def list_failures(output: str) -> dict[str, Failure]:
    """Every failure of an output by shard id, sorted.

    Raises:
        CommitError: A record cannot be read.
    """
    return {failure.shard: failure for failure in _read_all(output, outputs.FAILURES, _failure_of)}


def remove_failure(output: str, shard_id: str) -> None:
    """Forget that a shard was given up; no error when it was not."""
    files.remove(files.join(output, outputs.failure_path(shard_id)))


def list_outputs(output: str) -> dict[str, int]:
    """Size in bytes of every data and ledger file, by path relative to the output."""
    return {
        f"{folder}/{entry.name}": entry.size_bytes
        for folder in ("data", "ledger")
        for entry in files.find(files.join(output, folder))
        if not entry.name.rpartition("/")[2].startswith(".")
    }


def sizes_of(output: str) -> Callable[[str], int | None]:
    """What tells the size of a data or ledger file by its path relative to the output.

    None for one that is not there. A local file is looked at when it is asked for, since there may
    be 200,000 of them; a store's are listed now.

    Raises:
        InputError: The store cannot be reached, or a file not be looked at.
    """
    root = local_path(output)
    if root is None:
        return list_outputs(output).get

    def size(path: str) -> int | None:
        with storage_errors(f"{root}/{path}"):
            return size_of(f"{root}/{path}")

    return size


def encode(record: Any) -> bytes:
    """A dataclass or mapping as canonical JSON: sorted keys, one per line, a newline at the end."""
    tree = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # type: ignore[arg-type]
    text = json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # of half a surrogate pair, it is JSON's escape


def _write(url: str, record: Commit | Failure) -> None:
    publish.write_bytes(url, encode(record))


def _read_all(output: str, folder: str, parse: Callable[[Any], RecordT]) -> Iterator[RecordT]:
    place = files.join(output, folder)
    names = [name for name in files.find_names(place) if name.endswith(".json")]

    def read(name: str) -> RecordT:
        return _read(files.join(place, name), parse)

    if local_path(place):  # nothing to wait for
        yield from map(read, names)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(names), _AT_ONCE):
            yield from pool.map(read, names[start : start + _AT_ONCE])


def _read(url: str, parse: Callable[[Any], RecordT]) -> RecordT:
    data = files.read_bytes(url)
    try:
        return parse(parse_json(data))
    except (ValueError, KeyError, TypeError, AttributeError, CommitError) as error:
        raise CommitError(
            f"{url}: not a record that capfilt wrote ({error}); remove it to have the shard redone"
        ) from error


def _commit_of(tree: Any) -> Commit:
    return Commit(
        **{
            **tree,
            "input": InputRecord(**tree["input"]),
            "models": {role: ModelIdentity(**model) for role, model in tree["models"].items()},
            "outputs": {path: OutputRecord(**file) for path, file in tree["outputs"].items()},
        }
    )


def _failure_of(tree: Any) -> Failure:
    return Failure(**{**tree, "input": InputRecord(**tree["input"])})
