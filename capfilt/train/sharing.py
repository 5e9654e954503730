"""What the text encoder and the text decoder share (Table 3 of the paper)."""

from __future__ import annotations

from typing import Literal

from capfilt.models.text_transformer import TextTransformer

Sharing = Literal["all_but_self_attention", "all", "all_but_cross_attention", "none"]

_OWN = {"all_but_self_attention": "attention", "all_but_cross_attention": "cross"}


def shared_decoder(
    encoder: TextTransformer, decoder: TextTransformer, sharing: Sharing
) -> TextTransformer:
    """The decoder that uses the encoder's modules in place of its own.

    Embeddings are shared unless nothing is; a norm belongs to what it comes after.

    Source: BLIP, arXiv:2201.12086, section 4.4 and Table 3; `tie_encoder_decoder_weights` of its
    code.
    """
    if sharing == "all":
        return encoder
    if sharing == "none":
        return decoder
    decoder.words, decoder.positions = encoder.words, encoder.positions
    decoder.norm = encoder.norm
    for ours, theirs in zip(decoder.layers, encoder.layers, strict=True):
        for part in ("attention", "cross", "ffn"):
            if part != _OWN[sharing]:
                setattr(ours, part, getattr(theirs, part))
    return decoder
