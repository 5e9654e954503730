"""Where a run reads, writes and computes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from capfilt.errors import ConfigError


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

    def check_places(self) -> None:
        """See that the places are no secrets, and OUTPUT not above INPUT; no store is asked.

        They are absolute by now.

        Raises:
            ConfigError: A password or a token would be recorded, or the input written over.
        """
        for name in ("input", "output", "human", "human_images"):
            place = urlsplit(getattr(self, name) or "")
            is_token = place.scheme in ("http", "https") and place.username is not None
            if place.scheme and (place.password is not None or is_token):
                raise ConfigError(
                    f"{name.upper()} {place.scheme}://...@{place.hostname}: its credentials would "
                    "be recorded; give them by the environment, as the store's own tools take them"
                )
        if self.output == self.input or self.input.startswith(f"{self.output}/"):
            raise ConfigError(
                f"OUTPUT {self.output} holds INPUT: give the new dataset its own folder"
            )
