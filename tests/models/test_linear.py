from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.config import CaptionConfig, ScoringConfig
from capfilt.models import linear
from capfilt.models.linear import LinearGelu, PackedLinear, prepare_for_inference, product
from capfilt.models.load import (
    blip_settings,
    load_caption_model,
    load_captioner,
    load_filter,
)
from tests.models.conftest import make_images

CAN_PACK = linear.can_pack(torch.zeros(1))
needs_operator = pytest.mark.skipif(not CAN_PACK, reason="torch has no packed layers here")


@pytest.fixture
def no_operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a torch or a processor without it."""
    monkeypatch.setattr(linear, "_operators", object)
    linear._packable.cache_clear()
    yield
    linear._packable.cache_clear()


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LinearGelu(80, 320), nn.Sequential(nn.Linear(320, 7, bias=False)))


@needs_operator
@pytest.mark.parametrize("shape", [(1, 80), (8, 80), (3, 577, 80), (1154, 80)])
@torch.inference_mode()
def test_packed_layers_in_fp32_give_the_plain_results(shape: tuple[int, ...]) -> None:
    model, x = layers(), torch.randn(shape)
    expected = model(x)
    prepare_for_inference(model)
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[1][0], PackedLinear)
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_packed_layers_in_bf16_round_no_more_than_the_plain_ones() -> None:
    exact, model, x = layers(), layers().to(torch.bfloat16), torch.randn(50, 80)
    plain = (model(x.to(torch.bfloat16)) - exact(x)).abs().max()
    prepare_for_inference(model)
    assert (model(x.to(torch.bfloat16)) - exact(x)).abs().max() <= 1.5 * plain


@pytest.mark.usefixtures("no_operator")
@torch.inference_mode()
def test_without_the_operator_the_layers_stay(captioner_folder: Path) -> None:
    model, x = layers(), torch.randn(5, 80)
    expected = model(x)
    prepare_for_inference(model)
    assert isinstance(model[0], LinearGelu)
    assert torch.equal(model(x), expected)
    assert torch.equal(product(x, x), x @ x.T)
    load_captioner(str(captioner_folder), CaptionConfig(), seed=0, device="cpu")


def test_an_operator_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other:
        def _reorder_linear_weight(self, weight: Tensor) -> Tensor:
            return weight

        def _linear_pointwise(self, x: Tensor, weight: Tensor, *_: object) -> Tensor:
            return F.relu(F.linear(x, weight))

        def _is_mkldnn_bf16_supported(self) -> bool:
            return True

    monkeypatch.setattr(linear, "_operators", Other)
    linear._packable.cache_clear()
    assert not linear.can_pack(torch.zeros(1))
    linear._packable.cache_clear()


def test_captions_and_scores_are_the_same_without_the_operator(
    captioner_folder: Path, filter_folder: Path, request: pytest.FixtureRequest
) -> None:
    fast = results(captioner_folder, filter_folder)
    request.getfixturevalue("no_operator")
    plain = results(captioner_folder, filter_folder)
    assert fast[0] == plain[0]
    for a, b in zip(fast[1], plain[1], strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def results(captioner_folder: Path, filter_folder: Path) -> tuple[object, list[list[float | None]]]:
    images = list(make_images(6))
    captioner = load_captioner(str(captioner_folder), CaptionConfig(), seed=0, device="cpu")
    filter_ = load_filter(str(filter_folder), ScoringConfig(), device="cpu")
    texts = [["a dog", "two people in the street"]] * 6
    scores = [[s.match_prob for s in of] for of in filter_.score(images, texts)]
    return captioner.caption(images, list("012345")), scores


def test_results_do_not_depend_on_how_many_threads_work(
    captioner_folder: Path, filter_folder: Path
) -> None:
    expected = results(captioner_folder, filter_folder)
    captioner = load_captioner(str(captioner_folder), CaptionConfig(), seed=0, device="cpu")
    images = list(make_images(6))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: captioner.caption(images, list("012345")), range(12)))
    assert all(captions == expected[0] for captions in found)
    torch.set_num_threads(2)  # the fixture of this folder puts back what was
    captions, scores = results(captioner_folder, filter_folder)
    assert captions == expected[0]
    assert scores == expected[1]


def test_model_that_is_not_prepared_can_be_trained(captioner_folder: Path) -> None:
    model = load_caption_model(captioner_folder, blip_settings(captioner_folder))
    model.vit(make_images(1)).square().sum().backward()
    gradient = model.vit.blocks[0].up.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@needs_operator
def test_prepared_model_holds_its_matrices_once(captioner_folder: Path) -> None:
    model = load_caption_model(captioner_folder, blip_settings(captioner_folder))
    prepare_for_inference(model.requires_grad_(False))
    assert not [m for m in model.modules() if isinstance(m, nn.Linear)]
    matrices = [name for name, p in model.named_parameters() if p.dim() == 2]
    assert matrices == ["text.words.weight", "text.positions.weight"]
