"""`capfilt run`: find the shards, see what is left to do, do it, say what came of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from capfilt.config import RunConfig
from capfilt.errors import ConfigError, InputError
from capfilt.io import files
from capfilt.io.commits import list_failures, read_commits, remove_failure, sizes_of
from capfilt.io.inputs import Inputs, find_shards, human_shards
from capfilt.io.lease import Lease
from capfilt.io.outputs import FAILURES
from capfilt.io.publish import clean_temporary
from capfilt.run.driver import drive, give_up
from capfilt.run.duplicates import duplicates_among
from capfilt.run.engine import Engine, GaveUp, Work
from capfilt.run.manifest import Manifest
from capfilt.run.output import check_output
from capfilt.run.plan import Plan, make_plan
from capfilt.run.progress import Progress
from capfilt.run.request import absolute, task_of
from capfilt.run.schedule import largest_first
from capfilt.run.summary import Summary
from capfilt.run.task import Task
from capfilt.run.watch import Arrivals, first_look
from capfilt.run.where import Where
from capfilt.text import some

log = logging.getLogger("capfilt")


def run(config: RunConfig, where: Where, *, live: bool = False) -> Summary:
    """Caption and filter every shard of an input that has no commit yet.

    Everything that can be wrong with the request is found before a model is loaded or a GPU
    claimed.

    Args:
        config: What to do.
        where: On what, and with what hardware.
        live: Show progress as a live block, for terminals; else as plain lines now and then.

    Raises:
        ConfigError, ModelError, InputError, CommitError: One line: what, where, what to do.
    """
    config, where = absolute(config, where)
    where.check_places()
    check_output(where.output)
    task = task_of(config, where.output)
    if where.watch and config.images.dedupe is not None:
        raise ConfigError("images.dedupe looks at the whole INPUT first, which a watch has not yet")
    inputs = _find(where)
    with Lease(where.output, "capfilt watch" if where.watch else "capfilt run") as lease:
        return _run(task, where, inputs, lease, live=live)


def _find(where: Where) -> Inputs:
    if where.watch:
        inputs = first_look(where.input)
    else:
        inputs = find_shards(where.input, allow_unfinished=where.allow_unfinished)
    shards = inputs.shards
    if where.human is not None:
        shards += human_shards(where.human, where.human_images)
        twice = [shard_id for shard_id, n in Counter(s.id for s in shards).items() if n > 1]
        if twice:
            raise InputError(f"--human {where.human}: INPUT has shards of the same ids: {twice[0]}")
    if not shards and inputs.unfinished and not where.watch:
        raise InputError(
            f"{where.input}: every shard is unfinished (no _stats.json beside it), e.g. "
            f"{inputs.unfinished[0]}; wait for img2dataset, or use --allow-unfinished"
        )
    return Inputs(shards=shards, unfinished=inputs.unfinished)


def _run(task: Task, where: Where, inputs: Inputs, lease: Lease, *, live: bool) -> Summary:
    """What follows once OUTPUT is this process's own."""
    commits = read_commits(where.output)
    plan = make_plan(inputs.shards, commits, task.fingerprint, sizes_of(where.output))
    if where.address is not None:
        from capfilt.cluster import connect

        connect(where.address)
    manifest = Manifest.of(task, where)
    manifest.settle(where.output, plan, overwrite=where.overwrite)
    clean_temporary(where.output)
    _announce(plan, inputs, where)
    works = plan.works()
    failed_before = _failed_before(works, inputs, where.output)
    missing: tuple[str, ...] = ()
    if where.only_failed:
        works = [work for work in works if work.shard.id in failed_before]
        missing = _missing(failed_before, works, where.output)
    # Those that have failed come last: as many as the limit would keep all others from their turn.
    works.sort(key=lambda work: work.shard.id in failed_before)
    now = largest_first(works[: where.limit])
    task = replace(task, lease=lease.token)
    measures_noise = manifest.measures_noise
    left_by_limit = len(works) - len(now)
    failed: list[GaveUp] = []
    with Progress(shards=len(now), live=live, noise_ratio=measures_noise) as progress:
        arrivals = Arrivals(task, where, progress, inputs) if where.watch else None
        if now and task.config.images.dedupe is not None:
            found = duplicates_among(inputs.shards, task.config, where.output, task.excluded)
            task = replace(task, duplicates=found.duplicates)
            for work in now:
                if work.shard.id in found.unread:
                    tries = task.config.compute.max_attempts
                    failed.append(GaveUp(work.shard, tries, found.unread[work.shard.id]))
                    give_up(failed[-1], where.output, progress)
            now = [work for work in now if work.shard.id not in found.unread]
        if now or arrivals is not None:
            engine = _start(task, where, len(now) if arrivals is None else None)
            failed += drive(
                engine,
                chain(now, arrivals or ()),
                where.output,
                progress,
                lease,
                failed_before=failed_before,
            )
            clean_temporary(where.output)  # of workers that died meanwhile
    return Summary.of(
        where.output,
        plan,
        progress,
        failed,
        measures_noise=measures_noise,
        inputs=inputs if arrivals is None else arrivals.inputs(),
        left_by_limit=left_by_limit,
        missing=missing,
    )


def _failed_before(works: Iterable[Work], inputs: Inputs, output_url: str) -> set[str]:
    """The ids of shards that were given up, less those that are done since."""
    failed = set(list_failures(output_url))
    done = {shard.id for shard in inputs.shards if shard.id in failed}
    done -= {work.shard.id for work in works}
    for shard_id in done:
        remove_failure(output_url, shard_id)  # by a run that died just then
    return failed - done


def _missing(failed: set[str], works: Iterable[Work], output_url: str) -> tuple[str, ...]:
    """Which shards are to be done again and INPUT does not have."""
    missing = tuple(sorted(failed - {work.shard.id for work in works}))
    if missing:
        log.warning(
            "given up once, and not in INPUT now or unfinished there: %s; their records stay in %s",
            some(missing),
            files.join(output_url, FAILURES),
        )
    return missing


def _announce(plan: Plan, inputs: Inputs, where: Where) -> None:
    log.info(
        "%s: %d shards, %d done, %d to do%s",
        where.input,
        len(inputs.shards),
        plan.done,
        len(plan.todo),
        f", {len(plan.stale)} to redo" if plan.stale else "",
    )
    if plan.damaged:
        log.warning("files are missing or cut, made again: %s", some([s.id for s in plan.damaged]))
    if inputs.unfinished:
        log.warning(
            "unfinished (no _stats.json), skipped: %s; --allow-unfinished takes them",
            some(inputs.unfinished),
        )


def _start(task: Task, where: Where, shards: int | None) -> Engine:
    if where.local:
        from capfilt.run.local import LocalEngine

        return LocalEngine.load(task)
    from capfilt.cluster import connect, resources
    from capfilt.run.cluster import ClusterEngine

    connect(where.address)
    needs = resources(workers=where.workers, gpus_per_worker=where.gpus_per_worker, shards=shards)
    return ClusterEngine(task, needs, grows=where.workers is None)
