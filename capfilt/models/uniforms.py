"""Uniform random numbers that depend on what they are for, not on when they are drawn.

The number for one token is a pure function of (seed, sample key, caption index, step). So a caption
does not change with its batch, its worker or the attempt, and any step can be drawn alone:

    stream = first 8 bytes, little-endian, of BLAKE2b-64 of the text "seed/caption/key" in UTF-8
    z = splitmix64's output for state stream + (step + 1) * 0x9E3779B97F4A7C15, modulo 2^64
    u = (z >> 11) / 2^53

`step` counts generated tokens of the caption from 0; the prompt's are not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, keys: Sequence[str], captions: int, steps: int) -> npt.NDArray[np.float64]:
    """Draw the numbers for every token of every caption of every sample.

    Source: splitmix64 of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators".

    Args:
        seed: Of the run.
        keys: Of the samples.
        captions: How many captions a sample gets.
        steps: How many tokens a caption gets at most.

    Returns:
        In [0, 1), shape [len(keys), captions, steps].
    """
    streams = np.array(
        [[_stream(seed, key, caption) for caption in range(captions)] for key in keys],
        dtype=np.uint64,
    ).reshape(len(keys), captions, 1)
    z = streams + np.arange(1, steps + 1, dtype=np.uint64) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z = z ^ (z >> np.uint64(31))
    numbers: npt.NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _stream(seed: int, key: str, caption: int) -> int:
    # A lone surrogate may stand in a key that came from a file name.
    name = f"{seed}/{caption}/{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
