"""What is left to do: the input's shards less the commits that still hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from capfilt.io.commits import Commit
from capfilt.run.engine import Work
from capfilt.shard import InputShard
from capfilt.tally import Tally


@dataclass
class Plan:
    """Every input shard, in exactly one of four groups: done, todo, stale, damaged."""

    done: int = 0  # committed with this fingerprint from this very input
    todo: tuple[InputShard, ...] = ()  # no commit yet
    stale: list[InputShard] = field(default_factory=list)  # the config, a model, the input changed
    changed_inputs: list[str] = field(default_factory=list)  # ids of stale ones of another input
    damaged: list[InputShard] = field(default_factory=list)  # a file of theirs is missing or cut
    tally: Tally = field(default_factory=Tally)  # of those that are done
    is_begun: bool = False  # whether there is any commit, also of shards that the input has not

    def works(self) -> list[Work]:
        """What there is to do, by id."""
        works = [Work(shard) for shard in self.todo]
        works += [Work(shard, redo=True) for shard in (*self.stale, *self.damaged)]
        works.sort(key=lambda work: work.shard.id)
        return works


def make_plan(
    shards: Sequence[InputShard],
    commits: Iterable[Commit],
    fingerprint: str,
    size_of: Callable[[str], int | None],
) -> Plan:
    """Compare input, commits and the files that are there.

    Args:
        shards: Of the input.
        commits: Of the output. Each is let go when it is looked at: there may be 100,000.
        fingerprint: Of the run to come.
        size_of: Tells the bytes of a data or ledger file by its path relative to the output; None
            for one that is not there.

    An input counts as unchanged when its size and version (etag or modification time) are; where
    it lies may change, so a data set can be mounted elsewhere, or moved with its times kept.
    """
    plan = Plan()
    left = {shard.id: shard for shard in shards}
    for commit in commits:
        plan.is_begun = True
        shard = left.pop(commit.shard, None)
        if shard is None:
            continue
        seen = commit.input
        same_input = (seen.size_bytes, seen.version) == (shard.size_bytes, shard.version)
        if not same_input or commit.fingerprint != fingerprint:
            plan.stale.append(shard)
            if not same_input:
                plan.changed_inputs.append(shard.id)
        elif all(size_of(path) == file.size_bytes for path, file in commit.outputs.items()):
            plan.done += 1
            plan.tally.merge(Tally.from_dict(commit.counts))
        else:
            plan.damaged.append(shard)
    plan.todo = tuple(left.values())
    return plan
