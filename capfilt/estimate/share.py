"""A share that a sample shows, and how far the whole may be from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] and its 95 % interval."""

    share: float
    low: float
    high: float
    of: int  # samples that it was found among


def share_of(parts: Sequence[tuple[int, int]], *, seen: float, each: float = 1.0) -> Share | None:
    """The share of a whole, from parts of it.

    Wilson's score interval. Where the parts differ from one another more than chance does, it is
    widened by how much more (Pearson's dispersion); two parts say little of that, so a collection
    whose shards are of many kinds may lie outside. Samples that make up most of the whole narrow
    it, and of the whole itself it is exact.

    Source: Wilson 1927; McCullagh and Nelder, Generalized Linear Models, section 4.5.

    Args:
        parts: Of each shard: how many, of how many.
        seen: Share of the whole that was looked at, in [0, 1].
        each: How many of these come together, as an image's captions do: they count as one.

    Returns:
        None where nothing was looked at.
    """
    hits, trials = (sum(column) for column in zip(*parts, strict=True)) if parts else (0, 0)
    if not trials:
        return None
    share = hits / trials
    if seen >= 1.0:
        return Share(share, share, share, trials)
    count = trials / (_dispersion(parts, share) * max(1.0, each)) / (1.0 - seen)
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = share * (1 - share) / count + (Z / (2 * count)) ** 2
    half = Z * math.sqrt(spread) / (1 + Z**2 / count)
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), trials)


def _dispersion(parts: Sequence[tuple[int, int]], share: float) -> float:
    """How much more the parts differ than chance makes them, at least 1."""
    filled = [(hits, trials) for hits, trials in parts if trials]
    if len(filled) < 2 or not 0.0 < share < 1.0:
        return 1.0
    squares = sum((hits - trials * share) ** 2 / trials for hits, trials in filled)
    return max(1.0, squares / (share * (1.0 - share)) / (len(filled) - 1))
