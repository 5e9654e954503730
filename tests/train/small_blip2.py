"""A small BLIP-2 for tests of training, and its first stage written anew from the formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertTokenizer, Blip2VisionConfig, Blip2VisionModel

from capfilt.demo import tiny
from capfilt.models.image_encoder import load_image_encoder
from capfilt.models.query_attention import Mask
from capfilt.models.vit import ViT, VitConfig
from capfilt.train.blip2 import Blip2Represent, RepresentConfig
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, FrozenImageTower, QueryTower
from tests.train.small import spread

TOKENIZER = BertTokenizer(vocab={t: i for i, t in enumerate(tiny.vocabulary(tiny.WORDS.split()))})
TOKENIZER.add_special_tokens({"bos_token": "[DEC]"})
TOKENS = Tokens.of_bert(TOKENIZER)
IMAGE = VitConfig(width=32, layers=2, heads=4, ffn=64, image_size=32, patch_size=8, norm_eps=1e-6)
CONFIG = RepresentConfig(
    image=FrozenImageTower(image_size=32),
    qformer=QueryTower(width=24, layers=3, heads=4, queries=5),
    embedding=12,
    drop=DropConfig(text=0.0),
)


def vocabulary(folder: Path) -> Path:
    """The folder of the tokenizer."""
    TOKENIZER.save_pretrained(folder)
    return folder


def make_vit(seed: int = 0) -> ViT:
    vit = ViT(IMAGE)
    spread(vit, seed)
    return vit


def make_vision_folder(folder: Path, seed: int = 0) -> Path:
    """A `Blip2VisionModel` of `IMAGE`'s sizes."""
    model = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            image_size=32, patch_size=8,
        )
    )  # fmt: skip
    spread(model, seed)
    model.save_pretrained(folder)
    assert load_image_encoder(folder, 32).config == IMAGE
    return folder


def make_model(seed: int = 0, **changes: Any) -> Blip2Represent:
    """In training mode, with weights so large that no two images or texts look alike."""
    model = Blip2Represent(replace(CONFIG, **changes), make_vit(seed), TOKENS, seed=seed).train()
    spread(model, seed)
    with torch.no_grad():
        model.model.vit.norm.bias.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return model


class Reference:
    """Stage 1 in fp64 from transformers' tensors, one pair at a time under plain masks."""

    def __init__(self, model: Blip2Represent, folder: Path) -> None:
        model.export_filter(folder / "filter", vocabulary(folder / "names"))
        tensors = load_file(folder / "filter" / "model.safetensors")
        self._tensors = {name: x.double() for name, x in tensors.items()}
        self._head = {name: x.detach().double() for name, x in model.head.named_parameters()}
        self._config = model.config.qformer
        self._layers = model.config.qformer.layers

    def similarities(self, states: Tensor, texts: list[list[int]]) -> Tensor:
        """Of each image [N, T, Dv] and each text: the best query's cosine, [N, M]."""
        rows = []
        for image in states:
            row = []
            for text in texts:
                ids = [TOKENS.classify, *text]
                x = self.rows(image, ids, Mask.UNIMODAL)
                queries, first = x[: self._config.queries], x[self._config.queries]
                of_image = F.normalize(self._linear("vision_projection", queries), dim=-1)
                of_text = F.normalize(self._linear("text_projection", first), dim=-1)
                row.append((of_image @ of_text).max())
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def match_logits(self, image: Tensor, text: list[int]) -> Tensor:
        x = self.rows(image, [TOKENS.classify, *text], Mask.BIDIRECTIONAL)
        return self._linear("itm_head", x[: self._config.queries]).mean(0)

    def token_logits(self, image: Tensor, text: list[int]) -> Tensor:
        """[L, V], of `[DEC]` and the text less its last token."""
        x = self.rows(image, [TOKENS.decode, *text[:-1]], Mask.CAUSAL)[self._config.queries :]
        x = F.gelu(x @ self._head["dense.weight"].T + self._head["dense.bias"])
        x = F.layer_norm(x, x.shape[-1:], self._head["norm.weight"], self._head["norm.bias"], 1e-12)
        return x @ self._tensors["embeddings.word_embeddings.weight"].T + self._head["bias"]

    def rows(self, image: Tensor, ids: list[int], mask: Mask) -> Tensor:
        """Queries' and tokens' states, [Q + L, D]."""
        queries, length = self._config.queries, len(ids)
        seen = torch.zeros(queries + length, queries + length, dtype=torch.bool)
        for row in range(queries + length):
            for column in range(queries + length):
                if row < queries and column < queries:
                    seen[row, column] = True
                elif row >= queries and column >= queries:
                    seen[row, column] = mask is not Mask.CAUSAL or column <= row
                elif row >= queries:
                    seen[row, column] = mask is not Mask.UNIMODAL
                else:
                    seen[row, column] = mask is Mask.BIDIRECTIONAL
        words = self._tensors["embeddings.word_embeddings.weight"][ids]
        words = words + self._tensors["embeddings.position_embeddings.weight"][:length]
        x = self._norm("qformer.layernorm", torch.cat([self._tensors["query_tokens"][0], words]))
        for i in range(self._layers):
            x = self._layer(f"qformer.encoder.layer.{i}", x, image, seen, crosses=i % 2 == 0)
        return x

    def _layer(self, name: str, x: Tensor, image: Tensor, seen: Tensor, *, crosses: bool) -> Tensor:
        x = self._attention(f"{name}.attention", x, x, seen)
        query, text = x[: self._config.queries], x[self._config.queries :]
        if crosses:
            query = self._attention(f"{name}.crossattention", query, image.double())
        return torch.cat([self._ffn(name, query, "_query"), self._ffn(name, text, "")])

    def _attention(self, name: str, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = (
            self._linear(f"{name}.attention.{part}", of)
            .view(len(of), self._config.heads, -1)
            .transpose(0, 1)
            for part, of in (("query", x), ("key", y), ("value", y))
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        context = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        context = self._linear(f"{name}.output.dense", context)
        return self._norm(f"{name}.output.LayerNorm", context + x)

    def _ffn(self, name: str, x: Tensor, kind: str) -> Tensor:
        up = F.gelu(self._linear(f"{name}.intermediate{kind}.dense", x))
        down = self._linear(f"{name}.output{kind}.dense", up)
        return self._norm(f"{name}.output{kind}.LayerNorm", down + x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-12)
