"""Hard negatives: for each text an image and for each image a text that look alike and are not.

They are drawn with the softmax of the contrastive similarity as weights. A pair whose image or text
is the same as this one's is never drawn; a pair that has none to draw from draws nothing. The draws
are a pure function of (seed, step, row of the joint batch), whatever the number of ranks.

Shapes: N pairs of this rank, M of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.models.transfer import tensor_on
from capfilt.models.uniforms import uniforms
from capfilt.train.gather import anywhere, rank
from capfilt.train.itc import Contrast


@dataclass(frozen=True)
class Negatives:
    """What this rank's pairs drew: rows of what they drew from; -1 where there was none to draw."""

    texts: list[int]  # for each image
    images: list[int]  # for each text


def draw(similarity: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
    """Draw one column per row with the softmax of the similarities as weights.

    Args:
        similarity: [N, M].
        allowed: True where a column may be drawn, [N, M].
        uniform: In [0, 1), fp64, [N].

    Returns:
        Columns [N], -1 where none is allowed.
    """
    weights = similarity.double().masked_fill(~allowed, -torch.inf).softmax(1)
    sums = weights.cumsum(1)
    # The last sum is exactly 1 and a column of weight 0 has the sum of the one before it: the first
    # sum above the number is never such a column's.
    columns = torch.searchsorted(sums / sums[:, -1:], uniform[:, None], right=True).squeeze(1)
    # Of a row of NaN no sum is above; any column will do, since its loss is NaN and ends it all.
    columns = columns.clamp(max=similarity.shape[1] - 1)
    return torch.where(allowed.any(1), columns, -1)


class Draws:
    """The draws of a step, on their way to the host while the device goes on working."""

    def __init__(self, contrast: Contrast, *, all_ranks: bool, seed: int, stream: str) -> None:
        """Draw.

        Args:
            contrast: Weights and positives.
            all_ranks: Draw from all ranks' pairs, not from this one's alone.
            seed: Of the run.
            stream: Names the step, and its forward pass.
        """
        count, everyone = contrast.same.shape
        own = slice(rank() * count, (rank() + 1) * count)
        among = slice(None) if all_ranks else own
        allowed = ~contrast.same[:, among]
        numbers = tensor_on(uniforms(seed, [stream], 2, everyone)[0, :, own], allowed.device)
        texts = draw(contrast.image_to_text[:, among], allowed, numbers[0])
        images = draw(contrast.text_to_image[:, among], allowed, numbers[1])
        self._drawn = ToHost(
            torch.stack([texts, images, anywhere(allowed.any()).long().expand(count)])
        )

    def fetch(self) -> Negatives:
        """Wait for them.

        Raises:
            ConfigError: No pair of any rank had a negative to draw.
        """
        texts, images, possible = self._drawn.fetch().tolist()
        if not possible[0]:
            raise ConfigError(
                f"a step of {len(texts)} images per rank has no negatives: its images or its texts "
                "are all the same; raise the batch size"
            )
        return Negatives(texts, images)


class ToHost:
    """A tensor on its way from a device, for which only `fetch` waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._done = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self._done is not None:
            self._done.record()

    def fetch(self) -> Tensor:
        if self._done is not None:
            self._done.synchronize()
        return self._tensor
