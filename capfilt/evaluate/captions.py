"""Captions of images against human ones: BLEU-1 to BLEU-4 and CIDEr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfilt.evaluate.caption_metrics import bleu, cider, tokens
from capfilt.evaluate.pairs import Captioned
from capfilt.evaluate.pictures import Pictures, shown
from capfilt.models.captioner import Captioner
from capfilt.record import ModelIdentity


@dataclass(frozen=True)
class Captions:
    """Figures over all images, and what was written for each.

    `bleu` and `cider` are as `caption_metrics` gives them; papers print them times 100.
    """

    captioner: ModelIdentity
    images: int
    references: int
    bleu: tuple[float, ...]  # BLEU-1 to BLEU-4
    cider: float
    written: dict[str, str]  # caption by image
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; without the captions."""
        figures = asdict(self)
        del figures["written"], figures["bleu"]
        named = {f"bleu{n}": figure for n, figure in enumerate(self.bleu, start=1)}
        return {"task": "captions", **figures, **named}

    def rows(self) -> list[dict[str, str]]:
        """The captions in the form of a captions file."""
        return [{"image": image, "caption": text} for image, text in self.written.items()]


def evaluate_captions(
    captioner: Captioner, pairs: Sequence[Captioned], pictures: Pictures
) -> Captions:
    """Caption every image, the best caption alone where there are several, and compare.

    Args:
        captioner: Its config says how it decodes.
        pairs: Images and their human captions.
        pictures: Where the images are.

    Raises:
        InputError: An image is missing or cannot be decoded.
    """
    started = time.monotonic()
    paths = [pair.image for pair in pairs]
    written = write_captions(captioner, paths, pictures)
    candidates = [tokens(written[path]) for path in paths]
    references = [[tokens(text) for text in pair.captions] for pair in pairs]
    return Captions(
        captioner=captioner.identity,
        images=len(pairs),
        references=sum(map(len, references)),
        bleu=tuple(bleu(candidates, references)),
        cider=cider(candidates, references),
        written=written,
        seconds=round(time.monotonic() - started, 3),
    )


def write_captions(
    captioner: Captioner, paths: Sequence[str], pictures: Pictures
) -> dict[str, str]:
    """Each image's first caption; an image's path is its key.

    Raises:
        InputError: An image is missing or cannot be decoded.
    """
    pictures.check(paths)
    size = pictures.batch_size
    batches = pictures.batches(paths, captioner.pixels)
    written = {}
    for i, pixels in enumerate(shown(batches, "captions", -(-len(paths) // size))):
        keys = paths[i * size : (i + 1) * size]
        found = captioner.caption(pixels, keys)
        written.update({key: texts[0] for key, texts in zip(keys, found, strict=True)})
    return written
