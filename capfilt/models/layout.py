"""How checkpoints name the tensors that we name otherwise. Pure tables, no files.

A layout maps each of our names to the names of the tensors that it is made of, stacked along the
first dimension: transformers keeps the text's query, key and value apart, and we fuse them.

    vit_layout      the images' side of all of them; ImageNet checkpoints of timm and of
                    transformers' `ViTModel`; transformers' `CLIPVisionModel`
    med_layout      transformers' `BlipForConditionalGeneration`, `BlipForImageTextRetrieval` and
                    `BlipModel`; the `.pth` files of BLIP's authors, with timm's names for the ViT;
                    `BertModel` and `BertForMaskedLM`
    qformer_layout  transformers' `Blip2ForImageTextRetrieval`, `Blip2ForConditionalGeneration` and
                    `InstructBlipForConditionalGeneration` less their language models, and
                    `Blip2QFormerModel`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt.errors import ModelError
from capfilt.text import some

Parts = dict[str, tuple[str, ...]]  # our name -> theirs


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of one model."""

    parts: Parts
    # What may also be in a checkpoint and is of no use: buffers, momentum copies, queues.
    ignored: re.Pattern[str]
    # Tensors that a checkpoint may hold under another name when they are tied: name -> other name.
    tied: Mapping[str, str]

    def collect(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Take a checkpoint's tensors by our names.

        Args:
            tensors: By the checkpoint's names.
            where: Names the checkpoint in errors.

        Raises:
            ModelError: Names tensors that are missing, or that no part of the model takes.
        """
        found = dict(tensors)
        for name, other in self.tied.items():
            if name in found and other in found and not torch.equal(found[name], found[other]):
                raise ModelError(
                    f"{where}: {name} differs from {other}, but BLIP ties them: "
                    "this checkpoint is of another model"
                )
            tied = found.pop(name, None)
            if tied is not None:
                found.setdefault(other, tied)
        wanted = [name for names in self.parts.values() for name in names]
        if missing := [name for name in wanted if name not in found]:
            raise ModelError(f"{where}: tensor {listed(missing)} missing")
        surplus = [n for n in found.keys() - set(wanted) if not self.ignored.search(n)]
        if surplus:
            raise ModelError(f"{where}: tensor {listed(sorted(surplus))} not of this model")
        return {
            ours: found[names[0]] if len(names) == 1 else torch.cat([found[n] for n in names])
            for ours, names in self.parts.items()
        }

    def release(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `collect`; a tied tensor appears once."""
        released: dict[str, Tensor] = {}
        for ours, names in self.parts.items():
            pieces = state[ours].chunk(len(names))
            released.update(zip(names, (piece.contiguous() for piece in pieces), strict=True))
        return released


def linear(ours: str, *theirs: str) -> Parts:
    """Weight and bias of a layer, which are theirs one below another."""
    return {f"{ours}.{kind}": tuple(f"{t}.{kind}" for t in theirs) for kind in ("weight", "bias")}


def layers_of(count: int, layer: Callable[[int], Parts]) -> Parts:
    """The parts of this many layers by number."""
    return join(layer(i) for i in range(count))


def join(parts: Iterable[Parts]) -> Parts:
    """All of them."""
    return {ours: names for part in parts for ours, names in part.items()}


def listed(names: Sequence[str]) -> str:
    """The first of some names and how many more there are, with the verb they need."""
    return f"{some(names, 1)} {'are' if len(names) > 1 else 'is'}"
