"""`capfilt run`: find the shards, see what is left to do, do it, say what came of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from capfilt.config import NONE, RunConfig
from capfilt.errors import CommitError, ConfigError, InputError
from capfilt.io import files
from capfilt.io.commits import (
    Commit,
    Failure,
    InputRecord,
    list_failures,
    list_outputs,
    read_commits,
    remove_failure,
    write_failure,
)
from capfilt.io.inputs import Inputs, find_shards, human_shards
from capfilt.io.lease import Lease
from capfilt.io.likeness import EvaluationSet
from capfilt.io.outputs import FAILURES
from capfilt.io.publish import clean_temporary
from capfilt.logs import about
from capfilt.record import ModelIdentity
from capfilt.run.duplicates import duplicates_among
from capfilt.run.engine import Done, Engine, GaveUp, Work
from capfilt.run.manifest import Manifest
from capfilt.run.output import check_output
from capfilt.run.plan import Plan, make_plan
from capfilt.run.progress import Progress
from capfilt.run.schedule import largest_first
from capfilt.run.task import Task
from capfilt.run.watch import Arrivals, first_look
from capfilt.schema import differences
from capfilt.shard import root_of
from capfilt.tally import Tally

log = logging.getLogger("capfilt")


@dataclass(frozen=True)
class Where:
    """Where a run reads, writes and computes; none of it changes a result."""

    input: str
    output: str
    human: str | None = None  # human-annotated pairs that join unfiltered
    human_images: str | None = None
    allow_unfinished: bool = False
    overwrite: bool = False
    limit: int | None = None  # shards of this call
    local: bool = False  # in this process, without Ray
    address: str | None = None  # a Ray cluster; None starts Ray on this machine
    workers: int | None = None
    gpus_per_worker: float | None = None
    only_failed: bool = False  # the shards that earlier calls have given up, and no others
    watch: bool = False  # stay, and take each shard as its `_stats.json` appears
    until_idle_s: float | None = None  # without work, after which a watch ends; None: never

    def __post_init__(self) -> None:
        if self.watch and self.allow_unfinished:
            raise ConfigError("a watch takes shards by their _stats.json: no --allow-unfinished")
        on_cluster = (self.address, self.workers, self.gpus_per_worker) != (None, None, None)
        if self.local and on_cluster:
            raise ConfigError(
                "--local is one worker in this process: leave out --address, --workers and "
                "--gpus-per-worker"
            )
        for name in ("limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, is {value}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker must be 0 or more, is {self.gpus_per_worker:g}")


@dataclass(frozen=True)
class Summary:
    """What came of a run. `tally` has the whole output, earlier runs included."""

    output: str
    shards_done: int  # by this call
    shards_before: int  # by earlier calls
    shards_failed: tuple[GaveUp, ...]
    unfinished: tuple[str, ...]
    left_by_limit: int
    images: int  # of this call
    seconds: float  # of this call, models' loading included
    tally: Tally = field(default_factory=Tally)
    noise_ratio: float | None = None  # only where a threshold on match_prob decides
    missing: tuple[str, ...] = ()  # to be done again, and not in INPUT or unfinished there

    @property
    def exit_code(self) -> int:
        """1 where something wants a person."""
        return 1 if self.shards_failed or self.missing else 0

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output": self.output,
            "shards": {
                "done": self.shards_done,
                "before": self.shards_before,
                "failed": [
                    {"id": f.shard.id, "attempts": f.attempts, "error": f.error}
                    for f in self.shards_failed
                ],
                "unfinished": list(self.unfinished),
                "left_by_limit": self.left_by_limit,
                "missing": list(self.missing),
            },
            "images": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.images / self.seconds, 3) if self.seconds else None,
            **self.tally.to_dict(),
            "noise_ratio": self.noise_ratio,
        }


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
    check_places(where)
    check_output(where.output)
    task = task_of(config, where.output)
    if where.watch and config.images.dedupe is not None:
        raise ConfigError("images.dedupe looks at the whole INPUT first, which a watch has not yet")
    inputs = _find(where)
    with Lease(where.output, "capfilt watch" if where.watch else "capfilt run") as lease:
        return _run(task, where, inputs, lease, live=live)


def _run(task: Task, where: Where, inputs: Inputs, lease: Lease, *, live: bool) -> Summary:
    """What follows once OUTPUT is this process's own."""
    commits = read_commits(where.output)
    plan = make_plan(inputs.shards, commits, task.fingerprint, list_outputs(where.output))
    if where.address is not None:
        from capfilt.cluster import connect

        connect(where.address)
    manifest = Manifest.of(
        task,
        input_url=where.input,
        human=where.human,
        human_images=where.human_images,
        allow_unfinished=where.allow_unfinished,
    )
    settle_manifest(manifest, where.output, plan, overwrite=where.overwrite)
    clean_temporary(where.output)
    _announce(plan, inputs, where)
    works = [Work(shard) for shard in plan.todo]
    works += [Work(shard, redo=True) for shard in (*plan.stale, *plan.damaged)]
    works.sort(key=lambda work: work.shard.id)
    missing: tuple[str, ...] = ()
    if where.only_failed:
        works, missing = _failed_alone(works, inputs, where.output)
    left = 0
    if where.limit is not None and len(works) > where.limit:
        left = len(works) - where.limit
        works = works[: where.limit]
    works = largest_first(works)
    task = replace(task, lease=lease.token)
    total = Tally()
    total.merge(plan.tally)
    has_threshold = manifest.measures_noise
    with Progress(shards=len(works), live=live, noise_ratio=has_threshold) as progress:
        failed: list[GaveUp] = []
        arrivals = Arrivals(task, where, progress, inputs) if where.watch else None
        if works or arrivals is not None:
            if task.config.images.dedupe is not None:
                found = duplicates_among(
                    inputs.shards, task.config.images, where.output, task.excluded
                )
                task = replace(task, duplicates=found)
            engine = _start(task, where, len(works) if arrivals is None else None)
            stream = chain(works, arrivals or ())
            failed = execute(engine, stream, where.output, progress, lease)
            clean_temporary(where.output)  # of workers that died meanwhile
    total.merge(progress.tally)
    if arrivals is not None:
        inputs = arrivals.inputs()
    return Summary(
        output=where.output,
        shards_done=progress.shards_done,
        shards_before=plan.done,
        shards_failed=tuple(failed),
        unfinished=inputs.unfinished,
        left_by_limit=left,
        images=progress.tally.read,
        seconds=progress.seconds,
        tally=total,
        noise_ratio=total.noise_ratio if has_threshold else None,
        missing=missing,
    )


def _failed_alone(
    works: Iterable[Work], inputs: Inputs, output_url: str
) -> tuple[list[Work], tuple[str, ...]]:
    """The works on shards that were given up, and the ids of such that INPUT does not have."""
    failed = list_failures(output_url)
    wanted = [work for work in works if work.shard.id in failed]
    there = {shard.id for shard in inputs.shards}
    missing = tuple(shard_id for shard_id in failed if shard_id not in there)
    for shard_id in failed.keys() - {work.shard.id for work in wanted} - set(missing):
        remove_failure(output_url, shard_id)  # it was done since, by a run that died just then
    if missing:
        log.warning(
            "given up once, and not in INPUT now or unfinished there: %s; their records stay in %s",
            _some(missing),
            files.join(output_url, FAILURES),
        )
    return wanted, missing


def task_of(config: RunConfig, output_url: str) -> Task:
    """The work order of a run, from a config whose paths are absolute.

    Raises:
        ModelError: A checkpoint is missing, of another class, or unsafe to load.
        ConfigError, InputError: An evaluation set cannot be read.
    """
    models = inspect_models(config)
    excluded = EvaluationSet.load(config.images.exclude) if config.images.exclude else None
    return Task(_settled(config, models), models, output_url, excluded)


def inspect_models(config: RunConfig) -> dict[str, ModelIdentity]:
    """Which weights the config's checkpoints hold, by role; nothing is loaded onto a device.

    Raises:
        ModelError: A checkpoint is missing, of another class, or unsafe to load.
    """
    from capfilt.models.checkpoint import inspect

    found = {}
    if config.captioner != NONE:
        found["captioner"] = inspect(config.captioner, "captioner")
    if config.filter != NONE:
        found["filter"] = inspect(config.filter, "filter")
    return found


def _settled(config: RunConfig, models: Mapping[str, ModelIdentity]) -> RunConfig:
    """The config with the prompt that the captioner brings, where none is given.

    So the fingerprint and the manifest say what was done.
    """
    if config.captions.prompt is not None:
        return config
    from capfilt.models.checkpoint import CAPTIONER, PROMPTS

    architecture = models["captioner"].architecture if "captioner" in models else CAPTIONER
    return replace(config, captions=replace(config.captions, prompt=PROMPTS[architecture]))


def absolute(config: RunConfig, where: Where) -> tuple[RunConfig, Where]:
    """Local paths as every worker finds them, whatever its current folder."""
    models: dict[str, Any] = {
        role: files.absolute(source)
        for role, source in (("captioner", config.captioner), ("filter", config.filter))
        if Path(source).is_dir()  # else a hub id, or none
    }
    exclude = tuple(files.absolute(place) for place in config.images.exclude)
    models["images"] = replace(config.images, exclude=exclude)
    where = replace(
        where,
        input=files.absolute(where.input),
        output=files.absolute(where.output),
        human=where.human and files.absolute(where.human),
        human_images=where.human_images and files.absolute(where.human_images),
    )
    return replace(config, **models), where


def check_places(where: Where) -> None:
    """See that the places are no secrets, and OUTPUT not above INPUT; no store is asked.

    Raises:
        ConfigError: A password or a token would be recorded, or the input written over.
    """
    for name in ("input", "output", "human", "human_images"):
        place = urlsplit(getattr(where, name) or "")
        is_token = place.scheme in ("http", "https") and place.username is not None
        if place.scheme and (place.password is not None or is_token):
            raise ConfigError(
                f"{name.upper()} {place.scheme}://...@{place.hostname}: its credentials would be "
                "recorded; give them by the environment, as the store's own tools take them"
            )
    if where.output == where.input or where.input.startswith(f"{where.output}/"):
        raise ConfigError(f"OUTPUT {where.output} holds INPUT: give the new dataset its own folder")


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


def settle_manifest(new: Manifest, output_url: str, plan: Plan, *, overwrite: bool) -> None:
    """Write the manifest, unless OUTPUT belongs to another run and may not be overwritten.

    Raises:
        CommitError: It does; names what differs.
    """
    old = Manifest.read(output_url)
    if plan.stale and not overwrite:
        changed = differences(old.decisive, new.decisive) if old else []
        if plan.changed_inputs:
            changed.append(f"the input of {_some(plan.changed_inputs)}")
        raise CommitError(
            f"{output_url} holds another run; {len(plan.stale)} of its shards would be redone "
            f"because of a change of {'; '.join(changed) or 'the fingerprint'}. "
            "Use --overwrite, or a new OUTPUT"
        )
    other = old is not None and old.fingerprint != new.fingerprint
    if old is not None and other and plan.is_begun and not overwrite:
        raise CommitError(
            f"{output_url} belongs to another run: "
            f"{'; '.join(differences(old.decisive, new.decisive))}. "
            "Use --overwrite, or a new OUTPUT"
        )
    if old is not None and plan.is_begun and not overwrite:
        before, now = root_of(old.input), root_of(new.input)
        if before != now:
            raise CommitError(
                f"{output_url} holds a run over {before}. Use --overwrite to go on with {now} "
                "(shards that are the same stay), or a new OUTPUT"
            )
    if old is not None and old.versions != new.versions and not other:
        changed_versions = "; ".join(differences(old.versions, new.versions))
        log.warning(
            "library versions differ from the first run's (%s): bytes may differ", changed_versions
        )
    if old != new:
        new.write(output_url)


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
        log.warning("files are missing or cut, made again: %s", _some([s.id for s in plan.damaged]))
    if inputs.unfinished:
        log.warning(
            "unfinished (no _stats.json), skipped: %s; --allow-unfinished takes them",
            _some(inputs.unfinished),
        )


def execute(
    engine: Engine,
    works: Iterable[Work | None],
    output_url: str,
    progress: Progress,
    lease: Lease | None = None,
) -> list[GaveUp]:
    """Let an engine work through shards; keep the count and the record of failures.

    Raises:
        CommitError: The lease is lost: another works on this OUTPUT now.
    """
    failed_before = list_failures(output_url)
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
            progress.shards_failed += 1
            failed.append(outcome)
            shard = outcome.shard
            write_failure(
                output_url,
                Failure(shard.id, InputRecord.of(shard), outcome.attempts, outcome.error),
            )
            told = about(shard=shard.id, attempts=outcome.attempts)
            log.error("shard %s failed: %s", shard.id, outcome.error, extra=told)
        progress.show(engine.in_flight())
    return failed


def _tell(commit: Commit) -> None:
    facts = {"shard": commit.shard, **commit.counts, **commit.telemetry}
    log.debug("shard %s is done", commit.shard, extra=about(**facts))


def _start(task: Task, where: Where, shards: int | None) -> Engine:
    if where.local:
        from capfilt.run.local import LocalEngine

        return LocalEngine.load(task)
    from capfilt.cluster import connect, resources
    from capfilt.run.cluster import ClusterEngine

    connect(where.address)
    needs = resources(workers=where.workers, gpus_per_worker=where.gpus_per_worker, shards=shards)
    return ClusterEngine(task, needs, grows=where.workers is None)


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
