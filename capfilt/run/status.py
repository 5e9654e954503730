"""`capfilt status`: how far a run is, read from its OUTPUT, and from INPUT where that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capfilt.errors import CapfiltError, InputError
from capfilt.io.commits import Failure, list_commits, list_failures, sizes_of
from capfilt.io.inputs import find_shards, human_shards
from capfilt.run.manifest import Manifest
from capfilt.run.plan import make_plan
from capfilt.tally import Tally


@dataclass(frozen=True)
class Status:
    """Shards by state and what became of their images and texts.

    `pending` and `unfinished` are None when the input cannot be listed from here.
    """

    output: str
    manifest: Manifest
    done: int
    stale: int  # committed by another config or model, or from an input that has changed
    failures: tuple[Failure, ...]
    pending: int | None
    unfinished: int | None
    seconds: float  # of all workers together
    tally: Tally

    @property
    def noise_ratio(self) -> float | None:
        """Of the synthetic captions; None where not a threshold on match_prob alone decides."""
        return self.tally.noise_ratio if self.manifest.measures_noise else None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output": self.output,
            "fingerprint": self.manifest.fingerprint,
            "models": self.manifest.models,
            "shards": {
                "done": self.done,
                "stale": self.stale,
                "failed": [
                    {"id": f.shard, "attempts": f.attempts, "error": f.error} for f in self.failures
                ],
                "pending": self.pending,
                "unfinished": self.unfinished,
            },
            "worker_seconds": round(self.seconds, 3),
            **self.tally.to_dict(),
            "noise_ratio": self.noise_ratio,
        }


def status(output_url: str) -> Status:
    """Read a run's state.

    Raises:
        InputError: There is no run at the URL.
    """
    manifest = Manifest.read(output_url)
    if manifest is None:
        raise InputError(f"{output_url}: no run here (no manifest.json)")
    commits = list_commits(output_url)
    failures = list_failures(output_url)
    pending = unfinished = None
    damaged_ids: set[str] = set()
    stale_ids = {i for i, commit in commits.items() if commit.fingerprint != manifest.fingerprint}
    try:
        inputs = find_shards(manifest.input, allow_unfinished=manifest.allow_unfinished)
        shards = inputs.shards
        if manifest.human is not None:
            shards += human_shards(manifest.human, manifest.human_images)
        plan = make_plan(shards, commits.values(), manifest.fingerprint, sizes_of(output_url))
        pending = sum(shard.id not in failures for shard in (*plan.todo, *plan.damaged))
        damaged_ids = {shard.id for shard in plan.damaged}
        unfinished = len(inputs.unfinished)
        stale_ids.update(shard.id for shard in plan.stale)
    except CapfiltError:
        pass  # the input may have been moved away since; the commits still tell the rest
    done = commits.keys() - stale_ids - damaged_ids
    tally = Tally()
    for commit in commits.values():
        tally.merge(Tally.from_dict(commit.counts))
    return Status(
        output=output_url,
        manifest=manifest,
        done=len(done),
        stale=len(stale_ids),
        failures=tuple(failures[key] for key in sorted(failures.keys() - done)),
        pending=pending,
        unfinished=unfinished,
        seconds=sum(commit.telemetry.get("seconds", 0.0) for commit in commits.values()),
        tally=tally,
    )
