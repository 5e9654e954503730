"""The filter: images and texts in, match probabilities and similarities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.blip2 import QueryMatchModel
from capfilt.models.images import PixelSpec
from capfilt.models.med import MatchModel, PackedTexts, SimilarityModel
from capfilt.models.transfer import stack_on
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity, Score
from capfilt.text import normalise


class Filter(Protocol):
    """Scores texts against their images."""

    pixels: PixelSpec
    identity: ModelIdentity

    def score(self, pixels: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score every text of every image.

        Args:
            pixels: One uint8 [3, size, size] per image, RGB, as `self.pixels` asks.
            texts: Per image its raw texts, any number, none included.

        Returns:
            Per image, per text, a score.
        """
        ...


class Ranker(Filter, Protocol):
    """A filter with both scores, which says what they are made of: retrieval asks for the parts.

    Shapes: N images, T image tokens, Dv image width, Q embeddings of an image, B texts, E width.
    """

    @property
    def model(self) -> MatchModel | QueryMatchModel: ...

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as ITC sees them."""
        ...

    def to_match(self, ids: Sequence[int]) -> list[int]:
        """A text's token ids as ITM sees them."""
        ...

    def image_embeddings(self, states: Tensor) -> Tensor:
        """ITC embeddings [N, Q, E] of length 1, of which the best counts, of states [N, T, Dv]."""
        ...

    def match_logits(self, texts: PackedTexts, states: Tensor) -> Tensor:
        """ITM's logits of "matched" [B], fp32, of texts and the states of their images."""
        ...


class MatchFilter:
    """A BLIP filter on one device: ITM match probability, ITC similarity, or both.

    An image passes through the image tower once, however many texts it has; its keys and values
    for the texts' cross-attention are projected once, too.

    Source: BLIP, arXiv:2201.12086, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        model: MatchModel | SimilarityModel,
        vocabulary: Vocabulary,
        identity: ModelIdentity,
        config: ScoringConfig,
    ) -> None:
        """Hold a loaded model; `capfilt.models.load.load_filter` loads one.

        A `SimilarityModel` serves where `config.match_prob` is off.

        Raises:
            ModelError: The model has fewer positions than `max_tokens`.
        """
        self.model = model
        self.identity = identity
        self.pixels = PixelSpec(size=model.config.image.image_size)
        self._vocabulary = vocabulary
        self._config = config
        if config.max_tokens > model.config.text.max_tokens:
            raise ModelError(
                f"scoring.max_tokens is {config.max_tokens} but {identity.source} has positions "
                f"for {model.config.text.max_tokens} tokens"
            )

    @torch.inference_mode()
    def score(self, pixels: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score every text of every image; see `Filter`.

        Texts are normalised here (`capfilt.text`) and cut to `max_tokens` tokens.
        """
        asked = [i for i, of_image in enumerate(texts) if of_image]
        if not asked:
            return [[] for _ in texts]
        device = self.model.vit.class_token.device
        states = self.model.vit(stack_on([pixels[i] for i in asked], device))
        ids = self._tokens([texts[i] for i in asked])
        nothing = [None] * sum(map(len, ids))
        match_probs = self._match_probs(states, ids) if self._config.match_prob else nothing
        similarities = self._similarities(states, ids) if self._config.similarity else nothing
        scores = iter([Score(*pair) for pair in zip(match_probs, similarities, strict=True)])
        return [[next(scores) for _ in of_image] for of_image in texts]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as ITC sees them: normalised, `[CLS]` first, cut to `max_tokens`."""
        config = self._config
        seen = [normalise(text, max_words=config.max_words) for text in texts]
        return self._vocabulary.encode(seen, max_tokens=config.max_tokens)

    def to_match(self, ids: Sequence[int]) -> list[int]:
        """A text's token ids as ITM sees them: its first token is what `itm_token` says."""
        first = self._vocabulary.first_to_match if self._config.itm_token == "enc" else ids[0]
        return [first, *ids[1:]]

    def image_embeddings(self, states: Tensor) -> Tensor:
        """See `Ranker`: an image has one."""
        return self.model.image_embeddings(states)[:, None]

    def match_logits(self, texts: PackedTexts, states: Tensor) -> Tensor:
        """See `Ranker`."""
        return self._match_logits(texts, states)[:, 1]

    def _tokens(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        ids = iter(self.tokens([text for of_image in texts for text in of_image]))
        return [[next(ids) for _ in of_image] for of_image in texts]

    def _match_probs(self, states: Tensor, ids: list[list[list[int]]]) -> list[float]:
        ids = [[self.to_match(text) for text in of_image] for of_image in ids]
        logits = self._match_logits(PackedTexts.of(ids, states.device), states)
        return logits.softmax(-1)[:, 1].tolist()

    def _match_logits(self, texts: PackedTexts, states: Tensor) -> Tensor:
        assert isinstance(self.model, MatchModel)  # `load_filter` sees to it
        memory = self.model.text.remember(states, queries=len(texts.ids) / len(states))
        return self.model.match_logits(texts, memory)

    def _similarities(self, states: Tensor, ids: list[list[list[int]]]) -> list[float]:
        texts = PackedTexts.of(ids, states.device)
        counts = torch.tensor(texts.texts_per_image, device=states.device)
        images = self.model.image_embeddings(states).repeat_interleave(counts, dim=0)
        return (images * self.model.text_embeddings(texts)).sum(-1).clamp(-1, 1).tolist()
