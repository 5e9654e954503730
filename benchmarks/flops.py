"""Least arithmetic of captioning and filtering one image, in FLOPs (multiply and add count two).

For BLIP-base and -large at 384 pixels the terms are torch's own counts, to the digit where both
count the same operation. Norms, softmax, activations and the attention of text tokens among
themselves (under 1 %) are left out.

Cross-attention counts in the cheaper of its two forms (`capfilt.models.memory`).

Shapes: n image tokens, d image width, w text width, H heads, V vocabulary.
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


def caption(config: MedConfig, lengths: Sequence[int], prompt: int) -> float:
    """Captions of one image.

    Args:
        config: Of the captioner.
        lengths: Tokens generated per caption, the end included.
        prompt: Tokens of the prompt, which runs once.
    """
    text = config.text
    tokens = prompt + sum(length - 1 for length in lengths)  # the last one is not read again
    head = 2 * text.width * text.width + 2 * text.width * text.vocabulary
    layer = tokens * _linears(config) + _cross_attention(config, tokens)
    return text.layers * layer + sum(lengths) * head


def match(config: MedConfig, lengths: Sequence[int]) -> float:
    """ITM of one image's texts of so many tokens, the last layer for their first tokens alone."""
    text, tokens, texts = config.text, sum(lengths), len(lengths)
    layer = tokens * _linears(config) + _cross_attention(config, tokens)
    keys_and_values = tokens * 4 * text.width * text.width  # of self-attention, for every token
    last = texts * _linears(config) + keys_and_values + _cross_attention(config, texts)
    return (text.layers - 1) * layer + last


def _linears(config: MedConfig) -> float:
    """One token through one layer's linear parts."""
    text = config.text
    return 12 * text.width**2 + 4 * text.width * text.ffn


def _cross_attention(config: MedConfig, tokens: int) -> float:
    """Of `tokens` in one layer, keys and values included, queries and output not."""
    n, d, w, heads = (
        config.image.tokens,
        config.image.width,
        config.text.width,
        config.text.heads,
    )
    projected = 4 * n * d * w + tokens * 4 * n * w
    absorbed = tokens * (4 * w * d + 4 * heads * n * d)
    return min(projected, absorbed)
