"""BLIP-2 as captioner: images in, captions out, written by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.errors import ModelError
from capfilt.models.blip2 import PromptModel
from capfilt.models.checkpoint import PROMPTS
from capfilt.models.generation import decode
from capfilt.models.images import PixelSpec
from capfilt.models.language import LanguageSession, LanguageTokens
from capfilt.models.med import PackedTexts
from capfilt.models.transfer import stack_on
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity


class Blip2Captioner:
    """A BLIP-2 with its language model on one device; see `capfilt.models.captioner.Captioner`.

    Decoding is that of BLIP's captioner, and a caption depends on its image, its key, its index and
    the seed alone. An image passes through the image encoder, the Q-Former and the language model's
    prompt once, however many captions it gets. Lengths count the language model's own text: for a
    decoder its start token, prompt and caption, for an encoder-decoder its start token and caption.

    Source: BLIP-2, arXiv:2301.12597, section 3.3; InstructBLIP, arXiv:2305.06500, section 2.3,
    whose Q-Former reads the prompt, too.
    """

    def __init__(
        self,
        model: PromptModel,
        language: Any,
        tokenizer: Any,
        vocabulary: Vocabulary | None,
        identity: ModelIdentity,
        config: CaptionConfig,
        *,
        seed: int,
    ) -> None:
        """Hold loaded models; `capfilt.models.load.load_captioner` loads them.

        Args:
            model: Image encoder and Q-Former.
            language: transformers' language model.
            tokenizer: Of the language model.
            vocabulary: Of the Q-Former, where it reads the prompt.
            identity: Of them all.
            config: How to decode.
            seed: Of the run.

        Raises:
            ModelError: The prompt leaves no room in `max_length`, or the language model has fewer
                positions.
        """
        self.model = model
        self.language = language
        self.identity = identity
        self.pixels = PixelSpec(size=model.config.image.image_size)
        self._config = config
        self._seed = seed
        self.tokens = LanguageTokens(tokenizer, language, identity.source)
        prompt = PROMPTS[identity.architecture] if config.prompt is None else config.prompt
        self._vocabulary = vocabulary
        self._text = prompt
        self._prompt = self.tokens.prompt(prompt)
        start = self.tokens.decoder_start
        self._lead = self._prompt if start is None else [start]
        self._check_room()

    @torch.inference_mode()
    def caption(self, pixels: Sequence[Tensor], keys: Sequence[str]) -> list[tuple[str, ...]]:
        """Write captions for images; see `capfilt.models.captioner.Captioner`."""
        if not pixels:
            return []
        images = stack_on(pixels, self.model.vit.class_token.device)
        visual = self.model(images, self.instructions([[self._text]] * len(images)))
        start = self.tokens.decoder_start
        session = LanguageSession(self.language, visual, [self._prompt], start)
        captions = decode(
            session, self._lead, self.tokens.end, self._config, seed=self._seed, keys=keys
        )
        return [
            tuple(self.tokens.decode(self._lead, ids) for ids in of_image) for of_image in captions
        ]

    def instructions(self, prompts: Sequence[Sequence[str]]) -> PackedTexts | None:
        """Prompts of every image as its queries read them; None where they read none."""
        if self._vocabulary is None:
            return None
        flat = [text for of_image in prompts for text in of_image]
        longest = self.model.config.qformer.max_tokens
        ids = iter(self._vocabulary.encode(flat, max_tokens=longest))
        rows = [[next(ids) for _ in of_image] for of_image in prompts]
        return PackedTexts.of(rows, self.model.vit.class_token.device)

    def _check_room(self) -> None:
        longest, queries = self._config.max_length, self.model.config.qformer.queries
        if len(self._lead) >= longest:
            raise ModelError(
                f"captions.max_length is {longest} but the start and the prompt {self._text!r} are "
                f"{len(self._lead)} tokens: raise it or shorten the prompt"
            )
        positions = getattr(self.language.config, "max_position_embeddings", None)
        is_decoder = self.tokens.decoder_start is None
        if is_decoder and positions is not None and longest + queries > positions:
            raise ModelError(
                f"captions.max_length is {longest} but {self.identity.source} has positions for "
                f"{positions - queries} tokens after the image's"
            )
