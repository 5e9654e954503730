from __future__ import annotations

from pathlib import Path

import pytest
import torch

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.models import text_transformer
from capfilt.models.attention import Grid
from capfilt.models.linear import can_pack, prepare_for_inference
from capfilt.models.load import blip_settings, load_caption_model, load_captioner, load_filter
from capfilt.models.memory import Absorbed, KeyValueMemory, StateMemory, is_less_work
from capfilt.models.text_transformer import TextTransformer
from tests.models.conftest import make_images

CPU = torch.device("cpu")
needs_operator = pytest.mark.skipif(
    not can_pack(torch.zeros(1)), reason="torch has no packed layers here"
)


@pytest.fixture(scope="module")
def text(captioner_folder: Path) -> TextTransformer:
    model = load_caption_model(captioner_folder, blip_settings(captioner_folder))
    return model.requires_grad_(False).text


@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 0, 5], [40, 3, 1], [0, 0, 7]])
@torch.inference_mode()
def test_states_alone_give_what_keys_and_values_give(
    counts: list[int], text: TextTransformer
) -> None:
    config = text.config
    states = torch.randn(3, 17, config.image_width)
    queries = 3 * torch.randn(sum(counts), config.width)
    layers = [Absorbed.of(layer.cross.key_value, config.heads) for layer in text.layers]
    projected, absorbed = text.remember(states), StateMemory.of(states, layers)
    assert isinstance(projected, KeyValueMemory)
    grid = Grid.of(counts, CPU)
    for layer in range(config.layers):
        expected = projected.attend(layer, queries, grid)
        assert expected.std() > 0.1
        torch.testing.assert_close(absorbed.attend(layer, queries, grid), expected)
    part = Grid.of(counts[2:] + counts[:1], CPU)
    some = torch.cat([queries[sum(counts[:2]) :], queries[: counts[0]]])
    torch.testing.assert_close(
        absorbed.select([2, 0]).attend(1, some, part),
        projected.select([2, 0]).attend(1, some, part),
    )


def test_less_work_up_to_some_60_tokens_at_the_published_sizes() -> None:
    states = torch.zeros(1, 577, 768, device="meta")
    assert is_less_work(60, states, 768, 12)
    assert not is_less_work(65, states, 768, 12)


@needs_operator
def test_prepared_model_remembers_states_for_few_tokens_only(captioner_folder: Path) -> None:
    model = load_caption_model(captioner_folder, blip_settings(captioner_folder))
    states = torch.zeros(1, 577, model.config.image.width)
    assert isinstance(model.text.remember(states, queries=1), KeyValueMemory)
    prepare_for_inference(model.requires_grad_(False))
    assert isinstance(model.text.remember(states, queries=1), StateMemory)
    assert isinstance(model.text.remember(states, queries=1000), KeyValueMemory)
    assert isinstance(model.text.remember(states), KeyValueMemory)


@needs_operator
@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_captions_and_scores_are_the_same_from_states(
    method: str, captioner_folder: Path, filter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, keys = list(make_images(20)), [str(i) for i in range(20)]
    config = CaptionConfig(method=method)  # type: ignore[arg-type]
    captioner = load_captioner(str(captioner_folder), config, seed=0, device="cpu")
    filter_ = load_filter(str(filter_folder), ScoringConfig(), device="cpu")
    texts = [["a dog", "two people in the street"], [], ["snow"]] * 6 + [[], ["free"]]
    made = []
    for always in (False, True):
        monkeypatch.setattr(text_transformer, "is_less_work", lambda *_, always=always: always)
        scores = [s.match_prob for of in filter_.score(images, texts) for s in of]
        made.append((captioner.caption(images, keys), scores))
    assert made[0][0] == made[1][0]
    assert made[0][1] == pytest.approx(made[1][1], abs=1e-5)
    assert made[0][1] != made[1][1]  # not the same way
