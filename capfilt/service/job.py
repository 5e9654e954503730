"""A job: a run that a cluster does on its own, under a name that its OUTPUT gives it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})  # Ray's words, as PENDING and RUNNING


@dataclass(frozen=True)
class Job:
    """What a cluster knows of a job. Times are seconds since 1970 by the cluster's clock."""

    id: str  # its name and a number: 1 for the first job of that OUTPUT on this cluster
    status: str
    input: str
    output: str
    began: float | None
    ended: float | None
    message: str  # Ray's, of how it ended

    @property
    def name(self) -> str:
        """What all jobs of its OUTPUT are called."""
        return name_of(self.output)

    @property
    def number(self) -> int:
        """Which of them it is."""
        return int(self.id.rpartition("-")[2])

    @property
    def is_over(self) -> bool:
        return self.status in ENDED

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def name_of(output: str) -> str:
    """The name of an OUTPUT's jobs: its last part, and a hash that tells it from its namesakes.

    >>> name_of("s3://bucket/My dataset/")
    'my-dataset-2d1001'
    """
    place = output.rstrip("/")
    word = re.sub(r"[^a-z0-9]+", "-", place.rpartition("/")[2].lower()).strip("-")[:40]
    return f"{word or 'output'}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
