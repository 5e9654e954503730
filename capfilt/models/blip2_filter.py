"""BLIP-2 as filter: images and texts in, match probabilities and similarities out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.config import ScoringConfig
from capfilt.errors import ModelError
from capfilt.models.blip2 import QueryMatchModel, similarities
from capfilt.models.images import PixelSpec
from capfilt.models.med import PackedTexts
from capfilt.models.memory import ImageMemory
from capfilt.models.transfer import stack_on
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity, Score
from capfilt.text import normalise


class Blip2Filter:
    """A stage-1 BLIP-2 on one device; see `capfilt.models.filter.Filter`.

    Texts start with `[CLS]` for ITM as for ITC: BLIP-2 has no `[ENC]`. An image passes through the
    image encoder once, and its keys and values are projected once, however many texts it has.

    Source: BLIP-2, arXiv:2301.12597, section 3.1.
    """

    def __init__(
        self,
        model: QueryMatchModel,
        vocabulary: Vocabulary,
        identity: ModelIdentity,
        config: ScoringConfig,
    ) -> None:
        """Hold a loaded model; `capfilt.models.load.load_filter` loads one.

        Raises:
            ModelError: The model has fewer positions than `max_tokens`.
        """
        self.model = model
        self.identity = identity
        self.pixels = PixelSpec(size=model.config.image.image_size)
        self._vocabulary = vocabulary
        self._config = config
        if config.max_tokens > model.config.qformer.max_tokens:
            raise ModelError(
                f"scoring.max_tokens is {config.max_tokens} but {identity.source} has positions "
                f"for {model.config.qformer.max_tokens} tokens"
            )

    @torch.inference_mode()
    def score(self, pixels: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score every text of every image; see `capfilt.models.filter.Filter`.

        Texts are normalised here (`capfilt.text`) and cut to `max_tokens` tokens.
        """
        asked = [i for i, of_image in enumerate(texts) if of_image]
        if not asked:
            return [[] for _ in texts]
        states = self.model.vit(
            stack_on([pixels[i] for i in asked], self.model.vit.class_token.device)
        )
        packed = self._pack([texts[i] for i in asked], states.device)
        # Queries that look at an image: its own for ITC, and a copy per text for ITM.
        passes = self._config.similarity + self._config.match_prob * len(packed.first) / len(asked)
        memory = self.model.qformer.remember(
            states, queries=passes * self.model.config.qformer.queries
        )
        nothing = [None] * len(packed.first)
        match_probs = self._match_probs(packed, memory) if self._config.match_prob else nothing
        cosines = self._similarities(packed, memory) if self._config.similarity else nothing
        scores = iter([Score(*pair) for pair in zip(match_probs, cosines, strict=True)])
        return [[next(scores) for _ in of_image] for of_image in texts]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts: normalised, `[CLS]` first, cut to `max_tokens`."""
        seen = [normalise(text, max_words=self._config.max_words) for text in texts]
        # The tokenizer knows it as a placeholder of images, which has no embedding.
        seen = [text.replace("<image>", "< image >") for text in seen]
        return self._vocabulary.encode(seen, max_tokens=self._config.max_tokens)

    def to_match(self, ids: Sequence[int]) -> list[int]:
        """The same ones: see `capfilt.models.filter.Ranker`."""
        return list(ids)

    def image_embeddings(self, states: Tensor) -> Tensor:
        """See `capfilt.models.filter.Ranker`: an image has one per query."""
        memory = self.model.qformer.remember(states, queries=self.model.config.qformer.queries)
        return self.model.image_embeddings(len(states), memory)

    def match_logits(self, texts: PackedTexts, states: Tensor) -> Tensor:
        """See `capfilt.models.filter.Ranker`."""
        queries = self.model.config.qformer.queries * len(texts.first) / len(states)
        memory = self.model.qformer.remember(states, queries=queries)
        return self.model.match_logits(texts, memory)[:, 1]

    def _pack(self, texts: Sequence[Sequence[str]], device: torch.device) -> PackedTexts:
        ids = iter(self.tokens([text for of_image in texts for text in of_image]))
        return PackedTexts.of([[next(ids) for _ in of_image] for of_image in texts], device)

    def _match_probs(self, texts: PackedTexts, memory: ImageMemory) -> list[float]:
        logits = self.model.match_logits(texts, memory)
        return logits.softmax(-1)[:, 1].tolist()

    def _similarities(self, texts: PackedTexts, memory: ImageMemory) -> list[float]:
        counts = torch.tensor(texts.texts_per_image, device=texts.ids.device)
        images = self.model.image_embeddings(len(counts), memory)
        of_texts = images.repeat_interleave(counts, dim=0)
        return similarities(of_texts, self.model.text_embeddings(texts)).tolist()
