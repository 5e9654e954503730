"""Least arithmetic of captioning and filtering one image, in FLOPs (multiply and add count two).

For BLIP-base and -large at 384 pixels these are torch's own counts, to the digit where both count
the same operation. Norms, softmax and activations are left out, as is usual.

Shapes: n image tokens, d image width, w text width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from capfilt.models.med import MedConfig


def vision(config: MedConfig) -> float:
    """The image tower, once."""
    image = config.image
    n, d = image.tokens, image.width
    per_layer = 8 * n * d * d + 4 * n * d * image.ffn + 4 * n * n * d
    patches = 2 * (n - 1) * 3 * image.patch_size**2 * d
    return image.layers * per_layer + patches


def image_memory(config: MedConfig) -> float:
    """Keys and values of one image in every layer, once."""
    return config.text.layers * _layer_memory(config)


def text_tokens(config: MedConfig, tokens: int) -> float:
    """Tokens through all text layers; attention among themselves is left out (under 1 %)."""
    return config.text.layers * tokens * _layer_token(config)


def caption(config: MedConfig, lengths: Sequence[int], prompt: int) -> float:
    """Captions of one image.

    Args:
        config: Of the captioner.
        lengths: Tokens generated per caption, the end included.
        prompt: Tokens of the prompt, which runs once.
    """
    tokens = prompt + sum(length - 1 for length in lengths)  # the last one is not read again
    text = config.text
    head = 2 * text.width * text.width + 2 * text.width * text.vocabulary
    once = image_memory(config)
    # Without keys and values: queries go through the key matrices, contexts through the value ones.
    n, d, w = config.image.tokens, config.image.width, text.width
    absorbed = text.layers * tokens * (4 * w * d + 4 * text.heads * n * d - 4 * n * w)
    return text_tokens(config, tokens) + sum(lengths) * head + min(once, absorbed)


def match(config: MedConfig, lengths: Sequence[int]) -> float:
    """ITM of one image's texts of so many tokens, the last layer for their first tokens alone."""
    text = config.text
    layers = text.layers - 1
    all_but_last = layers * (_layer_memory(config) + sum(lengths) * _layer_token(config))
    keys_and_values = 4 * text.width * text.width  # of self-attention, for every token
    last = len(lengths) * _layer_token(config) + sum(lengths) * keys_and_values
    n, d, w = config.image.tokens, config.image.width, text.width
    absorbed = len(lengths) * (4 * w * d + 4 * text.heads * n * d)
    return all_but_last + last + min(_layer_memory(config), absorbed)


def _layer_memory(config: MedConfig) -> float:
    return 4 * config.image.tokens * config.image.width * config.text.width


def _layer_token(config: MedConfig) -> float:
    text = config.text
    linears = 12 * text.width**2 + 4 * text.width * text.ffn
    return linears + 4 * config.image.tokens * text.width
