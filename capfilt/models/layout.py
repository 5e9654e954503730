"""How checkpoints name the tensors that we name otherwise. Pure tables, no files.

A layout maps each of our names to the names of the tensors that it is made of, stacked along the
first dimension: transformers keeps the text's query, key and value apart, and we fuse them.

    transformers   BlipForConditionalGeneration, BlipForImageTextRetrieval and BlipModel
    original       the `.pth` files of BLIP's authors: timm's names for the ViT, `text_*` as above
    timm, vit      ImageNet checkpoints of timm and of transformers' `ViTModel`, without a prefix
    bert           `BertModel` and `BertForMaskedLM`, with the prefix `bert`
    clip           transformers' `CLIPVisionModel`, and the same in a `CLIPModel`
    BLIP-2         transformers' `Blip2ForImageTextRetrieval`, `Blip2ForConditionalGeneration` and
                   `InstructBlipForConditionalGeneration` less their language models, and
                   `Blip2QFormerModel`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt.errors import ModelError

Parts = dict[str, tuple[str, ...]]  # our name -> theirs

_NOTHING = re.compile(r"(?!)")  # matches no name
_BLOCK = ("norm1", "qkv", "out", "norm2", "up", "down")  # of the ViT, in the order of its work


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of one model."""

    parts: Parts
    # What may also be in a checkpoint and is of no use: buffers, momentum copies, queues.
    ignored: re.Pattern[str]
    # Tensors that a checkpoint may hold under another name when they are tied: name -> other name.
    tied: Mapping[str, str]

    def collect(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Take a checkpoint's tensors by our names.

        Args:
            tensors: By the checkpoint's names.
            where: Names the checkpoint in errors.

        Raises:
            ModelError: Names tensors that are missing, or that no part of the model takes.
        """
        found = dict(tensors)
        for name, other in self.tied.items():
            if name in found and other in found and not torch.equal(found[name], found[other]):
                raise ModelError(
                    f"{where}: {name} differs from {other}, but BLIP ties them: "
                    "this checkpoint is of another model"
                )
            tied = found.pop(name, None)
            if tied is not None:
                found.setdefault(other, tied)
        wanted = [name for names in self.parts.values() for name in names]
        if missing := [name for name in wanted if name not in found]:
            raise ModelError(f"{where}: tensor {listed(missing)} missing")
        surplus = [n for n in found.keys() - set(wanted) if not self.ignored.search(n)]
        if surplus:
            raise ModelError(f"{where}: tensor {listed(sorted(surplus))} not of this model")
        return {
            ours: found[names[0]] if len(names) == 1 else torch.cat([found[n] for n in names])
            for ours, names in self.parts.items()
        }

    def release(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `collect`; a tied tensor appears once."""
        released: dict[str, Tensor] = {}
        for ours, names in self.parts.items():
            pieces = state[ours].chunk(len(names))
            released.update(zip(names, (piece.contiguous() for piece in pieces), strict=True))
        return released


def captioner(*, image_layers: int, text_layers: int, original: bool = False) -> Layout:
    """Of a `CaptionModel`."""
    head = "text_decoder.cls.predictions"
    parts = {
        **_image(image_layers, original),
        **_text("text_decoder.bert", text_layers),
        **_linear("head.dense", f"{head}.transform.dense"),
        **_linear("head.norm", f"{head}.transform.LayerNorm"),
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
        **_image(image_layers, original),
        **_text("text_encoder", text_layers),
        **_linear("image_projection", "vision_proj"),
        **_linear("text_projection", "text_proj"),
        **_linear("itm_head", "itm_head"),
    }
    return Layout(parts, _ignored(original, "text_decoder"), {})


def similarity(*, image_layers: int, text_layers: int) -> Layout:
    """Of a `SimilarityModel`."""
    parts = {
        **_image(image_layers, original=False),
        **_text("text_model", text_layers),
        **_linear("pooler", "text_model.pooler.dense"),
        "image_projection.weight": ("visual_projection.weight",),
        "text_projection.weight": ("text_projection.weight",),
    }
    return Layout(parts, re.compile(r"\.position_ids$|^logit_scale$"), {})


def image_net(*, image_layers: int, timm: bool) -> Layout:
    """Of the ViT in a checkpoint of an image classifier."""
    head = re.compile(r"^(head|head_dist|classifier|cls_classifier|pooler|pre_logits)\.|^logit_")
    if timm:
        return Layout(_timm("", image_layers), head, {})
    names = (
        "layernorm_before", "attention.attention.{}", "attention.output.dense", "layernorm_after",
        "intermediate.dense", "output.dense",
    )  # fmt: skip

    def block(i: int, our: str, their: str) -> Parts:
        parts = ("query", "key", "value") if our == "qkv" else ("",)
        return _linear(
            f"vit.blocks.{i}.{our}", *(f"encoder.layer.{i}.{their.format(p)}" for p in parts)
        )

    stem = {
        "vit.class_token": ("embeddings.cls_token",),
        "vit.positions": ("embeddings.position_embeddings",),
        **_linear("vit.patches", "embeddings.patch_embeddings.projection"),
        **_linear("vit.norm", "layernorm"),
    }
    blocks = _layers(
        image_layers,
        lambda i: _join(block(i, o, t) for o, t in zip(_BLOCK, names, strict=True)),
    )
    return Layout(stem | blocks, head, {})


def query_image(*, image_layers: int) -> Layout:
    """Of the image encoder of a BLIP-2."""
    return Layout(_image(image_layers, original=False), re.compile(r"^(?!vision_model\.)"), {})


def clip_image(*, image_layers: int) -> Layout:
    """Of the first blocks of a `CLIPVisionModel`, numbered from 1, and of its two first norms.

    `vit.blocks.0.norm2` is the norm before the first block; see `capfilt.models.image_encoder`.
    """
    root = "vision_model"
    stem = {
        "vit.class_token": (f"{root}.embeddings.class_embedding",),
        "vit.positions": (f"{root}.embeddings.position_embedding.weight",),
        "vit.patches.weight": (f"{root}.embeddings.patch_embedding.weight",),
        **_linear("vit.blocks.0.norm2", f"{root}.pre_layrnorm"),
    }

    def block(i: int) -> Parts:
        ours, theirs = f"vit.blocks.{i + 1}", f"{root}.encoder.layers.{i}"
        qkv = [f"{theirs}.self_attn.{name}_proj" for name in ("q", "k", "v")]
        return {
            **_linear(f"{ours}.norm1", f"{theirs}.layer_norm1"),
            **_linear(f"{ours}.qkv", *qkv),
            **_linear(f"{ours}.out", f"{theirs}.self_attn.out_proj"),
            **_linear(f"{ours}.norm2", f"{theirs}.layer_norm2"),
            **_linear(f"{ours}.up", f"{theirs}.mlp.fc1"),
            **_linear(f"{ours}.down", f"{theirs}.mlp.fc2"),
        }

    rest = rf"^(?!{root}\.)|\.position_ids$|\.post_layernorm\.|\.layers\.{image_layers}\."
    return Layout(stem | _layers(image_layers, block), re.compile(rest), {})


def bert(*, text_layers: int, head: bool) -> Layout:
    """Of the text transformer in a BERT, which has no cross-attention; `head`: and its LM head."""
    parts = {
        ours: names for ours, names in _text("bert", text_layers).items() if ".cross." not in ours
    }
    top = "cls.predictions"
    if head:
        parts |= {
            **_linear("head.dense", f"{top}.transform.dense"),
            **_linear("head.norm", f"{top}.transform.LayerNorm"),
            "head.bias": (f"{top}.bias",),
        }
    tied = {
        f"{top}.decoder.bias": f"{top}.bias",
        f"{top}.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }
    ignored = r"^bert\.pooler\.|\.position_ids$|\.token_type_embeddings\.|^cls\.seq_relationship\."
    return Layout(parts, re.compile(ignored), tied)


def query_filter(*, image_layers: int, text_layers: int, cross_every: int) -> Layout:
    """Of a `QueryMatchModel`."""
    parts = {
        **_image(image_layers, original=False),
        **_qformer("qformer", "qformer.", text_layers, cross_every, reads_text=True),
        "qformer.queries": ("query_tokens",),
        "qformer.words.weight": ("embeddings.word_embeddings.weight",),
        "qformer.positions.weight": ("embeddings.position_embeddings.weight",),
        **_linear("image_projection", "vision_projection"),
        **_linear("text_projection", "text_projection"),
        **_linear("itm_head", "itm_head"),
    }
    return Layout(parts, re.compile(r"\.position_ids$"), {})


def query_captioner(
    *, image_layers: int, text_layers: int, cross_every: int, reads_text: bool
) -> Layout:
    """Of a `PromptModel`; the language model beside it keeps transformers' names.

    `reads_text`: of an InstructBLIP, whose Q-Former has its embeddings, and their norm, in itself.
    """
    parts = {
        **_image(image_layers, original=False),
        **_qformer("qformer", "qformer.", text_layers, cross_every, reads_text),
        "qformer.queries": ("query_tokens",),
        **_linear("projection", "language_projection"),
    }
    if reads_text:
        within = "qformer.embeddings"
        parts |= {
            "qformer.words.weight": (f"{within}.word_embeddings.weight",),
            "qformer.positions.weight": (f"{within}.position_embeddings.weight",),
            **_linear("qformer.norm", f"{within}.layernorm"),
        }
    return Layout(parts, re.compile(r"^language_model\.|\.position_ids$"), {})


def query_transformer(*, text_layers: int, cross_every: int, reads_text: bool) -> Layout:
    """Of a `QFormer` without queries and embeddings, which `Blip2QFormerModel` does not have."""
    parts = _qformer("", "", text_layers, cross_every, reads_text)
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


def _ignored(original: bool, other_half: str) -> re.Pattern[str]:
    names = [r"\.position_ids$"]
    if original:
        # Momentum copies and queues of ITC, and the half that the other module is made of.
        names += [r"^\w+_m\.", r"queue$", r"^queue_ptr$", r"^temp$", rf"^{other_half}\."]
        if other_half == "text_encoder":
            names.append(r"^(itm_head|vision_proj|text_proj)\.")
    return re.compile("|".join(names))


def _image(layers: int, original: bool) -> Parts:
    if original:
        return _timm("visual_encoder.", layers)
    root = "vision_model"
    stem = {
        "vit.class_token": (f"{root}.embeddings.class_embedding",),
        "vit.positions": (f"{root}.embeddings.position_embedding",),
        **_linear("vit.patches", f"{root}.embeddings.patch_embedding"),
        **_linear("vit.norm", f"{root}.post_layernorm"),
    }
    names = (
        "layer_norm1", "self_attn.qkv", "self_attn.projection", "layer_norm2", "mlp.fc1",
        "mlp.fc2",
    )  # fmt: skip
    return stem | _blocks(layers, f"{root}.encoder.layers", names)


def _timm(root: str, layers: int) -> Parts:
    stem = {
        "vit.class_token": (f"{root}cls_token",),
        "vit.positions": (f"{root}pos_embed",),
        **_linear("vit.patches", f"{root}patch_embed.proj"),
        **_linear("vit.norm", f"{root}norm"),
    }
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return stem | _blocks(layers, f"{root}blocks", names)


def _blocks(layers: int, root: str, names: Sequence[str]) -> Parts:
    return _layers(
        layers,
        lambda i: _join(
            _linear(f"vit.blocks.{i}.{our}", f"{root}.{i}.{their}")
            for our, their in zip(_BLOCK, names, strict=True)
        ),
    )


def _text(root: str, layers: int) -> Parts:
    def layer(i: int) -> Parts:
        our, their = f"text.layers.{i}", f"{root}.encoder.layer.{i}"
        own, cross = f"{their}.attention", f"{their}.crossattention"
        return {
            **_linear(
                f"{our}.attention.qkv", *(f"{own}.self.{n}" for n in ("query", "key", "value"))
            ),
            **_linear(f"{our}.attention.out", f"{own}.output.dense"),
            **_linear(f"{our}.attention.norm", f"{own}.output.LayerNorm"),
            **_linear(f"{our}.cross.query", f"{cross}.self.query"),
            **_linear(f"{our}.cross.key_value", *(f"{cross}.self.{n}" for n in ("key", "value"))),
            **_linear(f"{our}.cross.out", f"{cross}.output.dense"),
            **_linear(f"{our}.cross.norm", f"{cross}.output.LayerNorm"),
            **_linear(f"{our}.ffn.up", f"{their}.intermediate.dense"),
            **_linear(f"{our}.ffn.down", f"{their}.output.dense"),
            **_linear(f"{our}.ffn.norm", f"{their}.output.LayerNorm"),
        }

    embeddings = f"{root}.embeddings"
    return {
        "text.words.weight": (f"{embeddings}.word_embeddings.weight",),
        "text.positions.weight": (f"{embeddings}.position_embeddings.weight",),
        **_linear("text.norm", f"{embeddings}.LayerNorm"),
        **_layers(layers, layer),
    }


def _qformer(ours: str, theirs: str, layers: int, cross_every: int, reads_text: bool) -> Parts:
    def attention(our: str, their: str) -> Parts:
        return {
            **_linear(f"{our}.out", f"{their}.output.dense"),
            **_linear(f"{our}.norm", f"{their}.output.LayerNorm"),
        }

    def ffn(our: str, their: str, suffix: str) -> Parts:
        return {
            **_linear(f"{our}.up", f"{their}.intermediate{suffix}.dense"),
            **_linear(f"{our}.down", f"{their}.output{suffix}.dense"),
            **_linear(f"{our}.norm", f"{their}.output{suffix}.LayerNorm"),
        }

    def layer(i: int) -> Parts:
        our, their = f"{ours}.layers.{i}", f"{theirs}encoder.layer.{i}"
        own, cross = f"{their}.attention", f"{their}.crossattention"
        qkv = [f"{own}.attention.{name}" for name in ("query", "key", "value")]
        parts = {
            **_linear(f"{our}.attention.qkv", *qkv),
            **attention(f"{our}.attention", own),
            **ffn(f"{our}.query_ffn", their, "_query"),
        }
        if i % cross_every == 0:
            key_value = [f"{cross}.attention.{name}" for name in ("key", "value")]
            parts |= {
                **_linear(f"{our}.cross.query", f"{cross}.attention.query"),
                **_linear(f"{our}.cross.key_value", *key_value),
                **attention(f"{our}.cross", cross),
            }
        if reads_text:
            parts |= ffn(f"{our}.text_ffn", their, "")
        return parts

    return {**_linear(f"{ours}.norm", f"{theirs}layernorm"), **_layers(layers, layer)}


def _linear(ours: str, *theirs: str) -> Parts:
    return {f"{ours}.{kind}": tuple(f"{t}.{kind}" for t in theirs) for kind in ("weight", "bias")}


def _layers(count: int, layer: Callable[[int], Parts]) -> Parts:
    return _join(layer(i) for i in range(count))


def _join(parts: Iterable[Parts]) -> Parts:
    return {ours: names for part in parts for ours, names in part.items()}


def listed(names: Sequence[str]) -> str:
    """The first of some names and how many more there are, with the verb they need."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'}"
