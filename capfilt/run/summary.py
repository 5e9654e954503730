"""What came of a run: the figures that a command ends with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from capfilt.io.inputs import Inputs
from capfilt.run.engine import GaveUp
from capfilt.run.plan import Plan
from capfilt.run.progress import Progress
from capfilt.tally import Tally


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

    @classmethod
    def of(
        cls,
        output_url: str,
        plan: Plan,
        progress: Progress,
        failed: Iterable[GaveUp],
        *,
        measures_noise: bool,
        inputs: Inputs | None = None,
        left_by_limit: int = 0,
        missing: tuple[str, ...] = (),
    ) -> Summary:
        """What the plan found done, and what has been done since.

        Args:
            output_url: OUTPUT.
            plan: What was there and what was left to do.
            progress: Counts what has ended.
            failed: The shards that were given up.
            measures_noise: Whether a threshold on match_prob alone decides.
            inputs: Has what is unfinished; None where nothing can be.
            left_by_limit: How many shards of the plan were not to be done this time.
            missing: Ids of shards to be done again that INPUT does not have.
        """
        total = Tally.sum((plan.tally, progress.tally))
        return cls(
            output=output_url,
            shards_done=progress.shards_done,
            shards_before=plan.done,
            shards_failed=tuple(failed),
            unfinished=inputs.unfinished if inputs is not None else (),
            left_by_limit=left_by_limit,
            images=progress.tally.read,
            seconds=progress.seconds,
            tally=total,
            noise_ratio=total.noise_ratio if measures_noise else None,
            missing=missing,
        )

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
