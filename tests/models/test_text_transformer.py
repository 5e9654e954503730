"""The three modes against transformers, in fp32, on texts of unequal length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.models.attention import Cache, Grid, Packed
from capfilt.models.load import blip_settings, load_caption_model, load_match_model
from capfilt.models.med import PackedTexts
from capfilt.models.text_transformer import Looking
from tests import checkpoints
from tests.models.conftest import make_images, normalised

# Texts per image: two, none, three.
TEXTS = [["a dog on the grass", "snow"], [], ["free shipping", "a", "two people at a table"]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ids() -> list[list[list[int]]]:
    tokenizer = checkpoints.tokenizer()
    return [[tokenizer(text)["input_ids"] for text in of_image] for of_image in TEXTS]


def padded(ids: list[list[list[int]]]) -> tuple[Tensor, Tensor, list[int]]:
    """Ids and mask [B, L], and the image of each text, for transformers."""
    flat = [text for of_image in ids for text in of_image]
    width = max(map(len, flat))
    rows = torch.tensor([text + [0] * (width - len(text)) for text in flat])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in flat])
    return rows, mask, [i for i, of_image in enumerate(ids) for _ in of_image]


@torch.inference_mode()
def test_unimodal_encoder_gives_transformers_states(
    ids: list[list[list[int]]], filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    rows, mask, _ = padded(ids)
    expected = hf_filter.text_encoder(rows, attention_mask=mask).last_hidden_state[mask.bool()]
    text = load_match_model(filter_folder, blip_settings(filter_folder)).text
    packed = PackedTexts.of(ids, CPU)
    states = text(packed.ids, packed.positions, Packed(packed.grid, text.config.heads))
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_image_grounded_encoder_gives_transformers_states(
    ids: list[list[list[int]]], filter_folder: Path, hf_filter: BlipForImageTextRetrieval
) -> None:
    rows, mask, owners = padded(ids)
    images = hf_filter.vision_model(normalised(make_images(3))).last_hidden_state
    expected = hf_filter.text_encoder(
        rows, attention_mask=mask, encoder_hidden_states=images[owners]
    ).last_hidden_state[mask.bool()]
    text = load_match_model(filter_folder, blip_settings(filter_folder)).text
    packed = PackedTexts.of(ids, CPU)
    looking = Looking(text.remember(images), Grid.of(packed.tokens_per_image, CPU))
    states = text(packed.ids, packed.positions, Packed(packed.grid, text.config.heads), looking)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_first_tokens_are_those_of_the_whole(
    ids: list[list[list[int]]], filter_folder: Path
) -> None:
    model = load_match_model(filter_folder, blip_settings(filter_folder))
    text, packed = model.text, PackedTexts.of(ids, CPU)
    memory = text.remember(model.vit(make_images(3)))
    own = Packed(packed.grid, text.config.heads)
    looking = Looking(memory, Grid.of(packed.tokens_per_image, CPU))
    first = Looking(memory, Grid.of(packed.texts_per_image, CPU))
    whole = text(packed.ids, packed.positions, own, looking)[packed.positions == 0]
    alone = text.first_tokens(packed.ids, packed.positions, own, looking, first)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("generating", [False, True])
def test_image_grounded_decoder_gives_transformers_logits(
    generating: bool, captioner_folder: Path, hf_captioner: BlipForConditionalGeneration
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 150, (3, 9), generator=generator)
    pixels = make_images(3)
    expected = hf_captioner(pixel_values=normalised(pixels), input_ids=ids).logits
    model = load_caption_model(captioner_folder, blip_settings(captioner_folder))
    memory, config = model.text.remember(model.vit(pixels)), model.config.text
    positions = torch.arange(9).repeat(3)
    if not generating:
        own = Packed(Grid.of([9] * 3, CPU), config.heads, causal=True)
        states = model.text(ids.flatten(), positions, own, Looking(memory, Grid.of([9] * 3, CPU)))
        logits = model.logits(states).view(3, 9, -1)
    else:
        like = torch.empty(0, config.width)
        cache, pieces = Cache(config.layers, config.heads, rows=3, room=9, like=like), []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            grid = Grid.of([end - start] * 3, CPU)
            piece = positions.view(3, 9)[:, start:end].flatten()
            states = model.text(ids[:, start:end].flatten(), piece, cache, Looking(memory, grid))
            cache.length = end
            pieces.append(model.logits(states).view(3, end - start, -1))
        logits = torch.cat(pieces, dim=1)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_transformers_that_share_all_but_self_attention_have_its_size_twice(
    captioner_folder: Path,
) -> None:
    folder = captioner_folder
    encoder, decoder = (load_caption_model(folder, blip_settings(folder)).text for _ in range(2))
    decoder.words, decoder.positions, decoder.norm = encoder.words, encoder.positions, encoder.norm
    for ours, theirs in zip(decoder.layers, encoder.layers, strict=True):
        ours.cross, ours.ffn = theirs.cross, theirs.ffn
    both = torch.nn.ModuleList([encoder, decoder])
    size = sum(p.numel() for p in both.parameters())
    alone = sum(p.numel() for p in encoder.parameters())
    own = sum(p.numel() for layer in encoder.layers for p in layer.attention.parameters())
    assert size == alone + own
