"""What is left to do: the input's shards less the commits that still hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capfilt.io.commits import Commit
from capfilt.shard import InputShard


@dataclass(frozen=True)
class Plan:
    """Every input shard, in exactly one of four groups: done, todo, stale, damaged."""

    done: tuple[Commit, ...]  # committed with this fingerprint from this very input
    todo: tuple[InputShard, ...]  # no commit yet
    stale: tuple[InputShard, ...]  # committed, but the config, a model or the input has changed
    changed_inputs: tuple[str, ...]  # ids of those stale ones whose input file has changed
    damaged: tuple[InputShard, ...]  # committed, but a file of theirs is missing or cut


def make_plan(
    shards: Sequence[InputShard],
    commits: Mapping[str, Commit],
    fingerprint: str,
    sizes: Mapping[str, int],
) -> Plan:
    """Compare input, commits and the files that are there.

    Args:
        shards: Of the input.
        commits: Of the output, by shard id.
        fingerprint: Of the run to come.
        sizes: Of the output's data and ledger files in bytes, by path relative to the output.

    An input counts as unchanged when its size and version (etag or modification time) are; where
    it lies may change, so a data set can be mounted elsewhere, or moved with its times kept.
    """
    done: list[Commit] = []
    todo: list[InputShard] = []
    stale: list[InputShard] = []
    changed_inputs: list[str] = []
    damaged: list[InputShard] = []
    for shard in shards:
        commit = commits.get(shard.id)
        if commit is None:
            todo.append(shard)
            continue
        seen = commit.input
        same_input = (seen.size_bytes, seen.version) == (shard.size_bytes, shard.version)
        if same_input and commit.fingerprint == fingerprint:
            if all(sizes.get(path) == file.size_bytes for path, file in commit.outputs.items()):
                done.append(commit)
            else:
                damaged.append(shard)
            continue
        stale.append(shard)
        if not same_input:
            changed_inputs.append(shard.id)
    return Plan(tuple(done), tuple(todo), tuple(stale), tuple(changed_inputs), tuple(damaged))
