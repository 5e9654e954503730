"""`capfilt plan`: what a run over an input would take and give, from a look at a little of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from capfilt.config import RunConfig
from capfilt.errors import ConfigError, InputError
from capfilt.estimate.census import Census, take_census
from capfilt.estimate.probe import Probe, probe
from capfilt.estimate.share import Share, share_of
from capfilt.io.inputs import find_shards
from capfilt.record import Source, Verdict
from capfilt.report.speed import Speed
from capfilt.run.request import absolute, task_of
from capfilt.run.where import Where


@dataclass(frozen=True)
class Estimate:
    """What an input holds, what was seen of it, and what follows for the whole."""

    input: str
    census: Census
    unfinished: int  # shards that img2dataset has not finished; not counted
    probe: Probe
    speed: Speed
    kept: Share  # images that keep a text
    texts: dict[Source, Share]  # kept, of those judged
    has_threshold: bool  # whether the rejected captions are noise
    price_per_hour: float | None = None  # of a GPU, or of a machine without
    ignores: tuple[str, ...] = ()  # what a run would look for in all of INPUT

    @property
    def hours(self) -> float:
        """Of one GPU, or one machine without, models' loading left out."""
        return self.census.images / self.probe.images_per_s / 3600

    @property
    def price(self) -> float | None:
        """Of those hours."""
        if self.price_per_hour is None:
            return None
        return self.speed.price_per_million(self.price_per_hour) * self.census.images / 1e6

    @property
    def output_bytes(self) -> int:
        """Of data and ledger."""
        return round(self.probe.output_bytes * self.census.images / self.probe.tally.read)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        probe = self.probe
        return {
            "input": self.input,
            "shards": self.census.shards,
            "unfinished": self.unfinished,
            "size_bytes": self.census.size_bytes,
            "images": self.census.images,
            "images_exact": self.census.is_exact,
            "shards_counted": self.census.counted,
            "device": probe.device,
            "images_per_s": round(probe.images_per_s, 3),
            "batch_size": probe.batch_size,
            "peak_memory_bytes": probe.peak_bytes,
            "models_load_s": round(probe.load_s, 3),
            "models_busy_share": round(probe.busy_share, 4),
            "unit": self.speed.unit,
            "hours": round(self.hours, 4),
            "price": None if self.price is None else round(self.price, 2),
            "output_bytes": self.output_bytes,
            "kept": asdict(self.kept),
            "not_looked_for": list(self.ignores),
            "texts": {source.value: asdict(share) for source, share in self.texts.items()},
            "probe": {
                "shards": [shard.id for shard in probe.shards],
                "unreadable": list(probe.unreadable),
                **probe.tally.to_dict(),
            },
        }


def estimate(
    config: RunConfig,
    input_url: str,
    *,
    allow_unfinished: bool = False,
    images: int = 512,
    price_per_hour: float | None = None,
) -> Estimate:
    """Estimate a run on this machine's GPU, or on its CPU where it has none.

    Nothing is written but to a temporary folder of this machine.

    Args:
        config: Of the run.
        input_url: Its INPUT.
        allow_unfinished: Count shards that img2dataset has not finished.
        images: How many go through the models, of two shards together.
        price_per_hour: Of one GPU, or of a machine without.

    Raises:
        ConfigError, ModelError, InputError: One line: what, where, what to do.
    """
    if images < 1:
        raise ConfigError(f"--probe-images must be at least 1, is {images}")
    if price_per_hour is not None and price_per_hour < 0:
        raise ConfigError(f"--gpu-hour-price must be 0 or more, is {price_per_hour:g}")
    config, where = absolute(config, Where(input_url, input_url))
    task = task_of(config, where.output)
    found = find_shards(where.input, allow_unfinished=allow_unfinished)
    if not found.shards:
        raise InputError(
            f"{where.input}: every shard is unfinished (no _stats.json beside it), e.g. "
            f"{found.unfinished[0]}; wait for img2dataset, or use --allow-unfinished"
        )
    seen = probe(task, found.shards, images)
    census = take_census(found.shards, seen.shards, config.images)
    tally = seen.tally
    share_seen = tally.read / census.images if census.images else 1.0
    kept = share_of([(t.samples[Verdict.KEPT], t.read) for t in seen.tallies], seen=share_seen)
    assert kept is not None  # a probe has images
    texts = {}
    for source in Source:
        parts = [(t.texts[source, Verdict.KEPT], t.judged(source)) for t in seen.tallies]
        share = share_of(parts, seen=share_seen, each=tally.judged(source) / tally.read)
        if share is not None:
            texts[source] = share
    speed = Speed(tally.read, tally.read / seen.images_per_s, 1, (_kind(seen.device),))
    has_threshold = task.config.selection.min_match_prob is not None
    unfinished = len(found.unfinished)
    dedupe = task.config.images.dedupe
    ignores = () if dedupe is None else (f"{dedupe} duplicates",)
    return Estimate(
        where.input,
        census,
        unfinished,
        seen,
        speed,
        kept,
        texts,
        has_threshold,
        price_per_hour,
        ignores,
    )


def _kind(device: str) -> str:
    return device.partition(" GPU-")[0]
