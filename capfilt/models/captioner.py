"""The captioner: images in, captions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capfilt.config import CaptionConfig
from capfilt.errors import ModelError
from capfilt.models.checkpoint import CAPTIONER, PROMPTS
from capfilt.models.generation import generate
from capfilt.models.images import PixelSpec
from capfilt.models.med import CaptionModel
from capfilt.models.transfer import stack_on
from capfilt.models.vocabulary import Vocabulary
from capfilt.record import ModelIdentity


class Captioner(Protocol):
    """Writes captions for images."""

    pixels: PixelSpec
    identity: ModelIdentity

    def caption(self, pixels: Sequence[Tensor], keys: Sequence[str]) -> list[tuple[str, ...]]:
        """Write captions for images.

        Args:
            pixels: One uint8 [3, size, size] per image, RGB, as `self.pixels` asks.
            keys: The images' sample keys, which decide their random numbers.

        Returns:
            Per image `per_image` captions without the prompt; for beam search the best first.
        """
        ...


class BlipCaptioner:
    """A BLIP captioner on one device.

    A caption depends on its image, its key, its index and the seed alone, whatever else is in the
    batch (up to the rounding of float arithmetic, which batch shapes can change).

    Source: BLIP, arXiv:2201.12086, section 3.3.
    """

    def __init__(
        self,
        model: CaptionModel,
        vocabulary: Vocabulary,
        identity: ModelIdentity,
        config: CaptionConfig,
        *,
        seed: int,
    ) -> None:
        """Hold a loaded model; `capfilt.models.load.load_captioner` loads one.

        Raises:
            ModelError: The prompt leaves no room in `max_length`, or the model has fewer positions.
        """
        self.model = model
        self.identity = identity
        self.pixels = PixelSpec(size=model.config.image.image_size)
        self._vocabulary = vocabulary
        self._config = config
        self._seed = seed
        prompt = PROMPTS[CAPTIONER] if config.prompt is None else config.prompt
        self._prompt = vocabulary.prompt(prompt)
        if len(self._prompt) >= config.max_length:
            raise ModelError(
                f"captions.max_length is {config.max_length} but [DEC] and the prompt "
                f"{prompt!r} are {len(self._prompt)} tokens: raise it or shorten the prompt"
            )
        if config.max_length > model.config.text.max_tokens:
            raise ModelError(
                f"captions.max_length is {config.max_length} but {identity.source} has positions "
                f"for {model.config.text.max_tokens} tokens"
            )

    @torch.inference_mode()
    def caption(self, pixels: Sequence[Tensor], keys: Sequence[str]) -> list[tuple[str, ...]]:
        """Write captions for images; see `Captioner`."""
        if not pixels:
            return []
        device = self.model.vit.class_token.device
        states = self.model.vit(stack_on(pixels, device))
        captions = generate(
            self.model,
            states,
            self._prompt,
            self._vocabulary.end,
            self._config,
            seed=self._seed,
            keys=keys,
        )
        return [
            tuple(self._vocabulary.decode(self._prompt, ids) for ids in of_image)
            for of_image in captions
        ]
