"""Small models and batches for tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.data.batch import Batch
from capfilt.demo.tiny import tokenizer
from capfilt.train.blip import BlipConfig, BlipPretrain
from capfilt.train.itc import ItcConfig
from capfilt.train.lm import LmConfig
from capfilt.train.tokens import Tokens
from capfilt.train.towers import DropConfig, ImageTower, TextTower
from tests.models.conftest import make_images, normalised

PROMPT = "a picture of "
TOKENIZER = tokenizer()
TOKENS = Tokens.of(TOKENIZER, PROMPT)
SEP = TOKENIZER.sep_token_id
CONFIG = BlipConfig(
    image=ImageTower(width=32, layers=2, heads=4, image_size=32, patch_size=8),
    text=TextTower(width=24, layers=2, heads=4),
    embedding=12,
    itc=ItcConfig(queue=16),
    lm=LmConfig(prompt=PROMPT),
    drop=DropConfig(text=0.0),
)


def make_batch(count: int, seed: int = 0) -> Batch:
    """Texts of three to nine tokens, all images and texts different."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    ids = torch.arange(count) + 1000 * seed
    words = (torch.randint(8, 90, (n,), generator=generator).tolist() for n in lengths)
    return Batch(
        images=make_images(count, seed=seed),
        texts=[[*text, SEP] for text in words],
        keys=[str(i) for i in range(count)],
        image_ids=ids,
        text_ids=ids.clone(),
    )


def rows(batch: Batch, wanted: slice) -> Batch:
    """Some of a batch."""
    return Batch(
        batch.images[wanted],
        batch.texts[wanted],
        batch.keys[wanted],
        batch.image_ids[wanted],
        batch.text_ids[wanted],
    )


def make_model(seed: int = 0, **changes: Any) -> BlipPretrain:
    """In training mode, with weights so large that no two images or texts look alike."""
    model = BlipPretrain(replace(CONFIG, **changes), TOKENS, seed=seed).train()
    spread(model, seed)
    model.matcher.momentum.update(model.matcher.model, 0.0)
    return model


def spread(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 0 and not name.endswith("norm.weight"):
                parameter.normal_(0, 0.2, generator=generator)


def vocabulary(folder: Path) -> Path:
    """The folder of the tokenizer."""
    TOKENIZER.save_pretrained(folder)
    return folder


class Reference:
    """transformers' modules with a model's weights, in fp64, on padded texts."""

    def __init__(self, model: BlipPretrain, folder: Path) -> None:
        model.export_filter(folder / "filter", vocabulary(folder))
        model.export_captioner(folder / "captioner", folder)
        self.filter = BlipForImageTextRetrieval.from_pretrained(folder / "filter").eval().double()
        self.captioner = (
            BlipForConditionalGeneration.from_pretrained(folder / "captioner").eval().double()
        )

    def states(self, images: Tensor) -> Tensor:
        pixels = normalised(images).double()
        return self.filter.vision_model(pixel_values=pixels).last_hidden_state  # type: ignore[no-any-return]

    def embeddings(self, images: Tensor, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """As ITC sees them."""
        image = self.filter.vision_proj(self.states(images)[:, 0])
        ids, mask = padded([[TOKENS.classify, *text] for text in texts])
        hidden = self.filter.text_encoder(ids, attention_mask=mask).last_hidden_state
        text = self.filter.text_proj(hidden[:, 0])
        return nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)

    def match_logits(self, states: Tensor, texts: list[list[int]]) -> Tensor:
        ids, mask = padded([[TOKENS.match, *text] for text in texts])
        hidden = self.filter.text_encoder(
            ids, attention_mask=mask, encoder_hidden_states=states
        ).last_hidden_state
        return self.filter.itm_head(hidden[:, 0])  # type: ignore[no-any-return]

    def token_logits(self, states: Tensor, texts: list[list[int]]) -> Tensor:
        """[N, longest, V], of `[DEC]`, the prompt and the text."""
        ids, mask = padded([[TOKENS.decode, *TOKENS.prompt, *text] for text in texts])
        return self.captioner.text_decoder(  # type: ignore[no-any-return]
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states
        ).logits


def padded(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, longest]."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
