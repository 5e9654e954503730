"""Making a step's batch, inside a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from capfilt.data.batch import Batch
from capfilt.data.config import DataConfig
from capfilt.data.dataset import Dataset
from capfilt.data.example import Example, UnusableError, make_example, stable_id
from capfilt.data.order import Order
from capfilt.data.section import SectionReader, Slot, SpanReader
from capfilt.errors import CapfiltError, InputError


class Encoder(Protocol):
    """Texts to token ids: `Vocabulary`, or a language model's."""

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
        """A first token, which the batch leaves out, the text's, and one that ends it."""
        ...


@dataclass(frozen=True)
class Parcel:
    """A batch but for its pixels, as it is sent from a worker; or why there is none."""

    texts: list[list[int]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # keys and reasons
    error: CapfiltError | None = None

    def batch(self, images: Tensor) -> Batch:
        """The batch with its pixels; in page-locked memory where there is CUDA."""
        pin = torch.cuda.is_available()  # a copy from other memory would wait for the device
        image_ids, text_ids = (
            torch.tensor(ids, pin_memory=pin) for ids in (self.image_ids, self.text_ids)
        )
        return Batch(images, self.texts, self.keys, image_ids, text_ids)


class BatchMaker:
    """Makes the batches of steps; quick when steps of a section rise."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        config: DataConfig,
        vocabulary: Encoder,
    ) -> None:
        self._order = order
        self._config = config
        self._vocabulary = vocabulary
        self._reader = SpanReader(datasets)
        self._sections: dict[tuple[int, int], SectionReader] = {}  # by epoch and section

    def make(self, step: int, pixels: Tensor) -> Parcel:
        """The batch of a step.

        Args:
            step: On all ranks.
            pixels: Where the images go, uint8 [N, 3, S, S].

        Raises:
            InputError: A shard cannot be read, or has nothing that is of use.
        """
        left_out: list[tuple[str, str]] = []
        keys, texts = [], []
        for row, slot in zip(pixels, self._slots(step), strict=True):
            example = self._example(slot, left_out)
            row.copy_(example.pixels)
            keys.append(example.key)
            texts.append(example.text)
        ids = self._vocabulary.encode(texts, max_tokens=self._config.max_tokens)
        return Parcel(
            [tokens[1:] for tokens in ids],
            keys,
            [stable_id(key) for key in keys],
            [stable_id(text) for text in texts],
            left_out,
        )

    def _slots(self, step: int) -> list[Slot]:
        place = self._order.place(step)
        if place is None:
            candidates = self._reader.start(self._order.across_epochs(step)).result()
            return [Slot(candidates, at) for at in range(len(candidates))]
        where = place.epoch, place.section
        if where not in self._sections:
            for old in [key for key in self._sections if key[0] < place.epoch]:
                del self._sections[old]
            self._sections[where] = SectionReader(self._order.windows(*where), self._reader)
        return self._sections[where].take(place.start, self._order.batch_size)

    def _example(self, slot: Slot, left_out: list[tuple[str, str]]) -> Example:
        for candidate in slot.in_turn():
            try:
                return make_example(candidate, self._config, self._order.seed)
            except UnusableError as error:
                if candidate is slot.window[slot.at]:
                    left_out.append((candidate.key, str(error)))
        key, reason = left_out[-1]
        raise InputError(
            f"{key}: cannot be used ({reason}), nor can any of the {len(slot.window)} examples "
            "that were read with it: look at the dataset with `capfilt run`"
        )
