"""How checkpoints name the tensors of BLIP's models, and a BERT's for their text."""

from __future__ import annotations

import re

from capfilt.models.layout import Layout, Parts, layers_of, linear
from capfilt.models.vit_layout import image_parts


def captioner(*, image_layers: int, text_layers: int, original: bool = False) -> Layout:
    """Of a `CaptionModel`."""
    head = "text_decoder.cls.predictions"
    parts = {
        **image_parts(image_layers, original),
        **_text("text_decoder.bert", text_layers),
        **linear("head.dense", f"{head}.transform.dense"),
        **linear("head.norm", f"{head}.transform.LayerNorm"),
        "head.bias": (f"{head}.bias",),
    }
    tied = {
        f"{head}.decoder.bias": f"{head}.bias",
        f"{head}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    }
    return Layout(parts, _ignored(original, "text_encoder"), tied)


def filter_(*, image_layers: int, text_layers: int, original: bool = False) -> Layout:
    """Of a `MatchModel`."""
    parts = {
        **image_parts(image_layers, original),
        **_text("text_encoder", text_layers),
        **linear("image_projection", "vision_proj"),
        **linear("text_projection", "text_proj"),
        **linear("itm_head", "itm_head"),
    }
    return Layout(parts, _ignored(original, "text_decoder"), {})


def similarity(*, image_layers: int, text_layers: int) -> Layout:
    """Of a `SimilarityModel`."""
    parts = {
        **image_parts(image_layers, original=False),
        **_text("text_model", text_layers),
        **linear("pooler", "text_model.pooler.dense"),
        "image_projection.weight": ("visual_projection.weight",),
        "text_projection.weight": ("text_projection.weight",),
    }
    return Layout(parts, re.compile(r"\.position_ids$|^logit_scale$"), {})


def bert(*, text_layers: int, head: bool) -> Layout:
    """Of the text transformer in a BERT, which has no cross-attention; `head`: and its LM head."""
    parts = {
        ours: names for ours, names in _text("bert", text_layers).items() if ".cross." not in ours
    }
    top = "cls.predictions"
    if head:
        parts |= {
            **linear("head.dense", f"{top}.transform.dense"),
            **linear("head.norm", f"{top}.transform.LayerNorm"),
            "head.bias": (f"{top}.bias",),
        }
    tied = {
        f"{top}.decoder.bias": f"{top}.bias",
        f"{top}.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }
    ignored = r"^bert\.pooler\.|\.position_ids$|\.token_type_embeddings\.|^cls\.seq_relationship\."
    return Layout(parts, re.compile(ignored), tied)


def _ignored(original: bool, other_half: str) -> re.Pattern[str]:
    names = [r"\.position_ids$"]
    if original:
        # Momentum copies and queues of ITC, and the half that the other module is made of.
        names += [r"^\w+_m\.", r"queue$", r"^queue_ptr$", r"^temp$", rf"^{other_half}\."]
        if other_half == "text_encoder":
            names.append(r"^(itm_head|vision_proj|text_proj)\.")
    return re.compile("|".join(names))


def _text(root: str, layers: int) -> Parts:
    def layer(i: int) -> Parts:
        our, their = f"text.layers.{i}", f"{root}.encoder.layer.{i}"
        own, cross = f"{their}.attention", f"{their}.crossattention"
        return {
            **linear(
                f"{our}.attention.qkv", *(f"{own}.self.{n}" for n in ("query", "key", "value"))
            ),
            **linear(f"{our}.attention.out", f"{own}.output.dense"),
            **linear(f"{our}.attention.norm", f"{own}.output.LayerNorm"),
            **linear(f"{our}.cross.query", f"{cross}.self.query"),
            **linear(f"{our}.cross.key_value", *(f"{cross}.self.{n}" for n in ("key", "value"))),
            **linear(f"{our}.cross.out", f"{cross}.output.dense"),
            **linear(f"{our}.cross.norm", f"{cross}.output.LayerNorm"),
            **linear(f"{our}.ffn.up", f"{their}.intermediate.dense"),
            **linear(f"{our}.ffn.down", f"{their}.output.dense"),
            **linear(f"{our}.ffn.norm", f"{their}.output.LayerNorm"),
        }

    embeddings = f"{root}.embeddings"
    return {
        "text.words.weight": (f"{embeddings}.word_embeddings.weight",),
        "text.positions.weight": (f"{embeddings}.position_embeddings.weight",),
        **linear("text.norm", f"{embeddings}.LayerNorm"),
        **layers_of(layers, layer),
    }
