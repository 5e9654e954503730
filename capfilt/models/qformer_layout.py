"""How checkpoints name the tensors of BLIP-2's models, and a BERT's for its Q-Former."""

from __future__ import annotations

import re

from capfilt.models.blip2 import QueryConfig
from capfilt.models.layout import Layout, Parts, layers_of, linear
from capfilt.models.med_layout import bert
from capfilt.models.qformer import QFormerConfig
from capfilt.models.vit_layout import image_parts

_NOTHING = re.compile(r"(?!)")  # matches no name


def query_filter(config: QueryConfig) -> Layout:
    """Of a `QueryMatchModel`."""
    parts = {
        **image_parts(config.image.layers, original=False),
        **_qformer("qformer", "qformer.", config.qformer, reads_text=True),
        "qformer.queries": ("query_tokens",),
        "qformer.words.weight": ("embeddings.word_embeddings.weight",),
        "qformer.positions.weight": ("embeddings.position_embeddings.weight",),
        **linear("image_projection", "vision_projection"),
        **linear("text_projection", "text_projection"),
        **linear("itm_head", "itm_head"),
    }
    return Layout(parts, re.compile(r"\.position_ids$"), {})


def query_captioner(config: QueryConfig) -> Layout:
    """Of a `PromptModel`; the language model beside it keeps transformers' names."""
    reads_text = config.qformer.reads_text
    parts = {
        **image_parts(config.image.layers, original=False),
        **_qformer("qformer", "qformer.", config.qformer, reads_text),
        "qformer.queries": ("query_tokens",),
        **linear("projection", "language_projection"),
    }
    if reads_text:  # of an InstructBLIP, which has the embeddings, and their norm, in its Q-Former
        within = "qformer.embeddings"
        parts |= {
            "qformer.words.weight": (f"{within}.word_embeddings.weight",),
            "qformer.positions.weight": (f"{within}.position_embeddings.weight",),
            **linear("qformer.norm", f"{within}.layernorm"),
        }
    return Layout(parts, re.compile(r"^language_model\.|\.position_ids$"), {})


def query_transformer(config: QFormerConfig) -> Layout:
    """Of a `QFormer` without queries and embeddings, which `Blip2QFormerModel` does not have."""
    parts = _qformer("", "", config, config.reads_text)
    return Layout({name.removeprefix("."): theirs for name, theirs in parts.items()}, _NOTHING, {})


def bert_queries(*, text_layers: int, head: bool) -> Layout:
    """Of what a `QFormer` takes from a BERT: both feed-forwards are copies of its one.

    `head`: and what its `LanguageHead` for ITG takes.

    Source: BLIP-2's code (`init_Qformer`: weights of `_query` modules are their namesakes').
    """
    theirs = bert(text_layers=text_layers, head=head)
    parts = {}
    for name, names in theirs.parts.items():
        name = name.removeprefix("text.")
        for ours in ("text_ffn", "query_ffn"):
            parts[name.replace(".ffn.", f".{ours}.")] = names
    tied = theirs.tied if head else {}
    return Layout(parts, re.compile(f"{theirs.ignored.pattern}|^cls\\."), tied)


def _qformer(ours: str, theirs: str, config: QFormerConfig, reads_text: bool) -> Parts:
    def attention(our: str, their: str) -> Parts:
        return {
            **linear(f"{our}.out", f"{their}.output.dense"),
            **linear(f"{our}.norm", f"{their}.output.LayerNorm"),
        }

    def ffn(our: str, their: str, suffix: str) -> Parts:
        return {
            **linear(f"{our}.up", f"{their}.intermediate{suffix}.dense"),
            **linear(f"{our}.down", f"{their}.output{suffix}.dense"),
            **linear(f"{our}.norm", f"{their}.output{suffix}.LayerNorm"),
        }

    def layer(i: int) -> Parts:
        our, their = f"{ours}.layers.{i}", f"{theirs}encoder.layer.{i}"
        own, cross = f"{their}.attention", f"{their}.crossattention"
        qkv = [f"{own}.attention.{name}" for name in ("query", "key", "value")]
        parts = {
            **linear(f"{our}.attention.qkv", *qkv),
            **attention(f"{our}.attention", own),
            **ffn(f"{our}.query_ffn", their, "_query"),
        }
        if i % config.cross_every == 0:
            key_value = [f"{cross}.attention.{name}" for name in ("key", "value")]
            parts |= {
                **linear(f"{our}.cross.query", f"{cross}.attention.query"),
                **linear(f"{our}.cross.key_value", *key_value),
                **attention(f"{our}.cross", cross),
            }
        if reads_text:
            parts |= ffn(f"{our}.text_ffn", their, "")
        return parts

    return {**linear(f"{ours}.norm", f"{theirs}layernorm"), **layers_of(config.layers, layer)}
