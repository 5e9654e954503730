"""One example: from a sample to the pixels and the text that training sees.

Its random numbers (which text, which crop) are a function of the seed, its key and which visit it
is, so they do not depend on who makes it, or when.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from capfilt.data.augment import augment
from capfilt.data.config import DataConfig
from capfilt.data.dataset import Dataset
from capfilt.data.reader import LIMITS
from capfilt.models.images import ImageError, decode
from capfilt.record import Reason, Sample
from capfilt.text import normalise


class UnusableError(Exception):
    """A sample that cannot be trained on; its message is a `Reason`."""


class Candidate(NamedTuple):
    """A sample that was read, and what is wanted of it."""

    dataset: Dataset
    shard_id: str
    sample: Sample
    cycle: int  # how many times the example was seen before
    nth: int  # which of the sample's texts, where each is an example of its own

    @property
    def key(self) -> str:
        """What messages call it."""
        return f"{self.dataset.name}/{self.shard_id}/{self.sample.key}"


@dataclass(frozen=True)
class Example:
    """What a batch needs of one example."""

    key: str
    pixels: Tensor  # uint8 [3, S, S]
    text: str  # normalised


def make_example(candidate: Candidate, config: DataConfig, seed: int) -> Example:
    """Draw a text, decode and vary the image.

    Raises:
        UnusableError: The image cannot be decoded, or nothing is left of the text.
    """
    sample = candidate.sample
    if sample.image is None:
        raise UnusableError(sample.problem or Reason.NO_IMAGE)
    key = candidate.key
    draws = random.Random(stable_id(f"{seed}\n{candidate.cycle}\n{candidate.nth}\n{key}"))
    text = _text(candidate, draws, config.max_words)
    try:
        rgb = decode(sample.image, LIMITS)
    except ImageError as error:
        raise UnusableError(error.reason) from None
    if config.augment.fixed:
        draws = random.Random(stable_id(f"{seed}\n{key}"))
    pixels = augment(rgb, draws, config.augment, config.image_size)
    return Example(key, pixels, text)


def stable_id(text: str) -> int:
    """A number of 64 bits, signed, that stands for a text on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _text(candidate: Candidate, draws: random.Random, max_words: int) -> str:
    texts = candidate.dataset.texts_of(candidate.sample)
    if candidate.dataset.config.texts == "pairs":
        texts = texts[candidate.nth : candidate.nth + 1]
    seen = [normalise(raw, max_words=max_words) for raw in texts]
    usable = [text for text in seen if text.strip()]
    if not usable:
        raise UnusableError(Reason.EMPTY_TEXT if texts else Reason.NO_TEXT)
    return usable[int(draws.random() * len(usable))]
