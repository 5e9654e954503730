"""Rows under decoding by BLIP's captioner, with its cache and its memory of the images.

All rows have the same length at all times. The prompt runs once per image; its captions or beams
then start from copies of its few self-attention entries, and share its image's keys and values
without copying them. An image without rows leaves the batch.

Shapes: N images, T image tokens, A active rows (ordered by image), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.models.attention import Cache, Grid
from capfilt.models.med import CaptionModel
from capfilt.models.memory import ImageMemory
from capfilt.models.text_transformer import Looking
from capfilt.models.transfer import tensor_on

# Dropping ended images copies the keys and values of the others: worth it once they are this few.
_WORTH_COPYING = 0.75


class Session:
    """Rows of one batch under decoding; see `capfilt.models.rows.Rows`."""

    def __init__(
        self,
        model: CaptionModel,
        image_states: Tensor,
        prompt: Sequence[int],
        max_length: int,
        *,
        rows: int = 1,
    ) -> None:
        """Run the prompt, once per image.

        Args:
            model: What decodes.
            image_states: [N, T, Dv].
            prompt: Token ids, `[DEC]` first.
            max_length: How many tokens a row has at most, prompt included.
            rows: How many there will be per image.
        """
        self._model = model
        queries = len(prompt) + rows * (max_length - len(prompt))
        self._memory: ImageMemory = model.text.remember(image_states, queries=queries)
        self._images = list(range(len(image_states)))  # which image each row of the memory is of
        self._owners = list(self._images)  # the image of each row
        text = model.config.text
        self._cache = Cache(
            text.layers, text.heads, rows=len(self._owners), room=max_length,
            like=image_states.new_empty(0, text.width),
        )  # fmt: skip
        self._device = image_states.device
        self._arrange()
        ids = tensor_on(list(prompt), self._device).expand(len(self._owners), -1)
        self.logits = self._run(ids)  # [A, V], of each row's next token

    def advance(self, ids: Tensor) -> None:
        """Append one token [A] to every row."""
        self.logits = self._run(ids[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, ordered by image; a row may come more than once."""
        if list(rows) == list(range(len(self._owners))):
            return
        self._owners = [self._owners[row] for row in rows]
        self._arrange()
        self.reorder(tensor_on(list(rows), self._device))

    def reorder(self, rows: Tensor) -> None:
        """Let rows [A] change places with others of their image; a row may come more than once."""
        self._cache.select(rows)
        self.logits = self.logits[rows]

    def _arrange(self) -> None:
        alive = sorted(set(self._owners))
        if len(alive) <= _WORTH_COPYING * len(self._images):
            self._memory = self._memory.select([self._images.index(image) for image in alive])
            self._images = alive
        counts = dict.fromkeys(self._images, 0)
        for owner in self._owners:
            counts[owner] += 1
        self._counts = list(counts.values())
        self._grid = Grid.of(self._counts, self._device)  # of one token a row

    def _run(self, ids: Tensor) -> Tensor:
        rows, fresh = ids.shape
        grid = self._grid
        if fresh > 1:
            grid = Grid.of([count * fresh for count in self._counts], self._device)
        start = self._cache.length
        positions = torch.arange(start, start + fresh, device=self._device).repeat(rows)
        states = self._model.text(
            ids.flatten(), positions, self._cache, Looking(self._memory, grid)
        )
        self._cache.length += fresh
        return self._model.logits(states.view(rows, fresh, -1)[:, -1])
