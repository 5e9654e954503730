"""ITC and ITM of one `MatchModel`: what pre-training and a filter's finetuning have in common.

Shapes: N pairs of this rank, M of all ranks, R images of other ranks, T image tokens, Dv width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capfilt.data.batch import Batch
from capfilt.models.med import MatchModel, PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.train.gather import gather_texts, gather_with_gradient, rank, ranks
from capfilt.train.itc import Itc, ItcConfig, Pairs
from capfilt.train.itm import ItmConfig, Matching, itm_loss
from capfilt.train.momentum import MomentumEncoder
from capfilt.train.negatives import Draws, ToHost
from capfilt.train.tokens import Tokens


class Matcher(nn.Module):
    """The model, its momentum encoder, and the two losses."""

    def __init__(
        self, model: MatchModel, itc: ItcConfig, itm: ItmConfig, tokens: Tokens, seed: int
    ) -> None:
        super().__init__()
        self.model = model
        self.momentum = MomentumEncoder(model)
        self.itc = Itc(itc, model.config.embedding)
        self._itm = itm
        self._tokens = tokens
        self._seed = seed
        self._passes = Passes()

    def check_batch(self, images: int, world: int) -> None:
        """See `BlipPretrain.check_batch`."""
        self.itc.config.check_batch(images * world)
        self._itm.check_batch(images, world)

    def contrast(self, states: Tensor, batch: Batch, step: int) -> tuple[Tensor, Drawn]:
        """ITC, and the draws of negatives by its similarities.

        Args:
            states: Of the batch's images, [N, T, Dv].
            batch: Of this rank.
            step: Of the optimiser.
        """
        number = self._passes.number(step)
        if self.training and number == 0:
            self.momentum.update(self.model, self.itc.config.momentum)
        texts = PackedTexts.of(
            [[[self._tokens.classify, *ids]] for ids in batch.texts], states.device
        )
        own = _pairs(self.model, states, texts, batch)
        with torch.no_grad():
            slow = self.momentum.model
            teacher = _pairs(slow, slow.vit(batch.images), texts, batch)
        found = self.itc(own, teacher, self.itc.config.alpha_at(step))
        all_ranks = self._itm.negatives == "all_ranks"
        draws = Draws(found, all_ranks=all_ranks, seed=self._seed, stream=f"{step}/{number}")
        longest = self.model.config.text.max_tokens
        return found.loss, Drawn(draws, states, batch.texts, longest, all_ranks=all_ranks)

    def match(self, memory: ImageMemory, drawn: Drawn) -> Tensor:
        """ITM.

        Args:
            memory: Of `drawn.images`.
            drawn: From `contrast`.
        """
        return itm_loss(self.model, memory, drawn.matching(), self._tokens.match)


class Drawn:
    """The negatives of a step with their images and texts."""

    def __init__(
        self,
        draws: Draws,
        states: Tensor,
        texts: list[list[int]],
        longest: int,
        *,
        all_ranks: bool,
    ) -> None:
        self._draws = draws
        self._texts = texts
        self._matching: Matching | None = None
        joint = all_ranks and ranks() > 1
        self._everyone = ToHost(gather_texts(texts, longest, states.device)) if joint else None
        self.others = 0  # images of other ranks among `images`
        self.images = states  # [N + R, T, Dv]
        if joint:
            others = self.matching().others
            self.others = len(others)
            self.images = torch.cat([states, gather_with_gradient(states)[others]])

    def matching(self) -> Matching:
        """Wait for the draws and put ITM's pairs together.

        Raises:
            ConfigError: No pair of any rank had a negative to draw.
        """
        if self._matching is None:
            count = len(self._texts)
            first, texts = 0, self._texts
            negatives = self._draws.fetch()
            if self._everyone is not None:
                rows = self._everyone.fetch().tolist()
                texts = [[i for i in row if i >= 0] for row in rows]
                first = rank() * count
            self._matching = Matching.of(negatives, texts, first=first)
        return self._matching


class Passes:
    """Counts the forward passes of each step: gradient accumulation makes several."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._number = 0

    def number(self, step: int) -> int:
        """0 for a step's first pass, 1 for its second, and so on."""
        self._number = self._number + 1 if step == self._step else 0
        self._step = step
        return self._number


def _pairs(model: MatchModel, states: Tensor, texts: PackedTexts, batch: Batch) -> Pairs:
    return Pairs(
        model.image_embeddings(states),
        model.text_embeddings(texts),
        batch.image_ids,
        batch.text_ids,
    )
