"""A dataset as training sees it: its shards, and how many examples each one has.

What a shard holds is known before it is read: from its commit (output of `capfilt run`), from
img2dataset's `_stats.json`, from the captions file, else from a look at every header. Which sample
has how many texts is asked only where it matters, and is in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from capfilt.data.config import DatasetConfig
from capfilt.data.order import Stock
from capfilt.record import Sample, Source
from capfilt.shard import InputShard

_PARTS = 10**9  # of a weight


@dataclass(frozen=True)
class Volume:
    """A shard and how many samples it has.

    Attributes:
        shard: Where it lies.
        samples: Samples that can be asked for, numbered from 0.
        texts: How many texts that count each sample has, uint8 [samples]; None: one each, or as
            many as it takes to draw one.
    """

    shard: InputShard
    samples: int
    texts: npt.NDArray[np.uint8] | None = None

    def numbers(self, nth: int) -> Sequence[int] | npt.NDArray[np.int64]:
        """The samples that have an `nth` text, from 0."""
        return range(self.samples) if self.texts is None else np.flatnonzero(self.texts > nth)

    def passes(self, *, pairs: bool) -> int:
        """How many times one goes through the shard to see each of its examples once."""
        if self.texts is None or not len(self.texts):
            return 1
        return int(self.texts.max()) if pairs else 1


class Dataset:
    """Volumes and the strands that they make: a strand is one pass over one volume."""

    def __init__(
        self,
        name: str,
        config: DatasetConfig,
        volumes: Sequence[Volume],
        *,
        is_output: bool,
        grain: int = 16,
    ) -> None:
        """Put volumes together; `capfilt.data.sources.open_dataset` finds them.

        Args:
            name: What its keys begin with.
            config: How it is used.
            volumes: In a fixed order.
            is_output: Whether `capfilt run` wrote it: then a sample says which texts were kept.
            grain: How many samples are read together whatever is asked for.
        """
        self.name = name
        self.config = config
        self.volumes = volumes
        self.is_output = is_output
        self.grain = grain

    @cached_property
    def strands(self) -> list[tuple[int, int]]:
        """Volume and number of the text of each strand."""
        pairs = self.config.texts == "pairs"
        return [
            (index, nth)
            for index, volume in enumerate(self.volumes)
            for nth in range(volume.passes(pairs=pairs))
        ]

    @cached_property
    def stock(self) -> Stock:
        """Its numbers for the order."""
        lengths = [len(self.volumes[index].numbers(nth)) for index, nth in self.strands]
        weight = Fraction(self.config.weight).limit_denominator(_PARTS)  # 96 / 131 is meant so
        return Stock(np.array(lengths, np.int64), weight, self.grain)

    def numbers(self, strand: int, start: int, stop: int) -> Sequence[int]:
        """Which samples of its volume the examples [start, stop) of a strand are."""
        index, nth = self.strands[strand]
        numbers = self.volumes[index].numbers(nth)[start:stop]
        return numbers if isinstance(numbers, range) else [int(number) for number in numbers]

    def texts_of(self, sample: Sample) -> list[str]:
        """The raw texts of a sample that count, in their order."""
        if not self.is_output:
            return [
                text.content
                for text in sample.texts
                if text.content is not None and text.reason is None and self._counts(text.source)
            ]
        captions: Any = sample.metadata.get("captions")
        if not isinstance(captions, list):
            return []
        return [caption["text"] for caption in captions if self._counts(caption["source"])]

    def _counts(self, source: Source | str) -> bool:
        return str(source) in self.config.sources
