"""The driver: takes each shard's outcome from an engine, whichever it is, and keeps the books."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from capfilt.io.commits import Commit, Failure, InputRecord, remove_failure, write_failure
from capfilt.io.lease import Lease
from capfilt.logs import about
from capfilt.run.engine import Done, Engine, GaveUp, Work
from capfilt.run.progress import Progress
from capfilt.tally import Tally

log = logging.getLogger("capfilt")


def drive(
    engine: Engine,
    works: Iterable[Work | None],
    output_url: str,
    progress: Progress,
    lease: Lease | None = None,
    *,
    failed_before: Collection[str] = (),
) -> list[GaveUp]:
    """Let an engine work through shards; keep the count and the record of failures.

    Args:
        engine: Does the work.
        works: What there is to do, as `Engine.execute` takes it.
        output_url: OUTPUT.
        progress: Counts what has ended.
        lease: OUTPUT's; None where nobody else can be at it.
        failed_before: Ids of shards with a record of failure, which goes once they are done.

    Raises:
        CommitError: The lease is lost: another works on this OUTPUT now.
    """
    failed = []
    for outcome in engine.execute(works):
        if lease is not None:
            lease.check()
        if isinstance(outcome, Done):
            progress.shards_done += 1
            progress.tally.merge(Tally.from_dict(outcome.commit.counts))
            _tell(outcome.commit)
            if outcome.commit.shard in failed_before:
                remove_failure(output_url, outcome.commit.shard)
        elif isinstance(outcome, GaveUp):
            failed.append(outcome)
            give_up(outcome, output_url, progress)
        progress.show(engine.in_flight())
    return failed


def give_up(outcome: GaveUp, output_url: str, progress: Progress) -> None:
    """Record and tell that a shard has failed."""
    progress.shards_failed += 1
    shard = outcome.shard
    write_failure(
        output_url, Failure(shard.id, InputRecord.of(shard), outcome.attempts, outcome.error)
    )
    told = about(shard=shard.id, attempts=outcome.attempts)
    log.error("shard %s failed: %s", shard.id, outcome.error, extra=told)


def _tell(commit: Commit) -> None:
    facts = {"shard": commit.shard, **commit.counts, **commit.telemetry}
    log.debug("shard %s is done", commit.shard, extra=about(**facts))
