"""Stage 1 of BLIP-2 against its formulas; what is frozen, and what is left at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

from capfilt.config import ScoringConfig
from capfilt.errors import ConfigError, ModelError
from capfilt.models.load import load_filter
from capfilt.train.blip2 import Blip2Represent
from capfilt.train.checkpoints import Checkpoints, unique_tensors
from capfilt.train.config import OptimiserConfig
from capfilt.train.optimiser import Optimiser
from tests.models.conftest import make_images, normalised
from tests.train.small import make_batch
from tests.train.small_blip2 import (
    CONFIG,
    TOKENIZER,
    Reference,
    make_model,
    make_vision_folder,
    vocabulary,
)

COUNT = 5


def smoothed(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with a distribution [N, M] as target, a part of it spread evenly."""
    target = (1 - smoothing) * target + smoothing / target.shape[1]
    return -(target * logits.log_softmax(1)).sum(1)


@pytest.mark.parametrize("repeated", [False, True])
def test_losses_follow_the_formulas(repeated: bool, tmp_path: Path) -> None:
    model, batch = make_model(), make_batch(COUNT)
    if repeated:  # images 1 and 3 are the same, and so are texts 0 and 4
        ids = torch.arange(COUNT)
        batch = replace(
            batch,
            image_ids=torch.tensor([0, 1, 2, 1, 4]),
            text_ids=torch.where(ids == 4, 0, ids),
        )
    reference = Reference(model, tmp_path)
    with torch.no_grad():
        found = model(batch, 0)
        states = model.model.vit(batch.images)
        again = make_model()  # whose first pass of step 0 is yet to come
        contrast = again._contrast(_queries(again, batch.images), batch)
        drawn = again._draw(contrast, again.features.of(batch), batch, 0).matching()
    similarity = reference.similarities(states, batch.texts) / 0.07
    same = (batch.image_ids[:, None] == batch.image_ids) | (
        batch.text_ids[:, None] == batch.text_ids
    )
    target = same.double() / same.sum(1, keepdim=True)
    itc = (smoothed(similarity, target, 0.1) + smoothed(similarity.T, target, 0.1)).mean() / 2
    assert found["itc"].item() == pytest.approx(itc.item(), abs=1e-4)

    logits = [
        reference.match_logits(states[image], text)
        for image, of_image in enumerate(drawn.texts)
        for text in of_image
    ]
    assert sum(drawn.matched) == COUNT
    assert len(drawn.matched) == 3 * COUNT
    itm = F.cross_entropy(torch.stack(logits), torch.tensor(drawn.matched))
    assert torch.stack(logits).std() > 0.05
    assert found["itm"].item() == pytest.approx(itm.item(), abs=1e-5)

    losses = [
        smoothed(
            reference.token_logits(states[image], text),
            F.one_hot(torch.tensor(text), len(TOKENIZER)).double(),
            0.1,
        )
        for image, text in enumerate(batch.texts)
    ]
    assert found["itg"].item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)


def _queries(model: Blip2Represent, images: Tensor) -> Tensor:
    memory = model.model.qformer.remember(model.model.vit(images))
    return model.model.qformer.read(len(images), memory)[0]


def test_negatives_are_never_positives() -> None:
    model, batch = make_model(), make_batch(8)
    batch = replace(batch, image_ids=torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]))
    batch.texts[:] = [[20 + i, TOKENIZER.sep_token_id] for i in range(8)]
    owner = {20 + i: int(image) for i, image in enumerate(batch.image_ids)}
    with torch.no_grad():
        contrast = model._contrast(_queries(model, batch.images), batch)
        for step in range(20):
            features = model.features.of(batch)
            drawn = model._draw(contrast, features, batch, step).matching()
            found = [
                (int(batch.image_ids[image]) == owner[text[0]], matched)
                for image, (of_image) in enumerate(drawn.texts)
                for text, matched in zip(of_image, _labels(drawn, image), strict=True)
            ]
            assert all(is_same == bool(matched) for is_same, matched in found)
            assert sum(drawn.matched) == 8


def _labels(drawn: object, image: int) -> list[int]:
    texts, matched = drawn.texts, drawn.matched  # type: ignore[attr-defined]
    start = sum(map(len, texts[:image]))
    return matched[start : start + len(texts[image])]  # type: ignore[no-any-return]


def test_frozen_encoder_stays_as_it_was_without_gradients_or_state(tmp_path: Path) -> None:
    model = make_model(drop=replace(CONFIG.drop, text=0.1))
    vit = model.model.vit
    before = {name: x.detach().clone() for name, x in vit.named_parameters()}
    optimiser = Optimiser(model, OptimiserConfig(lr=1e-2))
    for step in range(3):
        losses = model(make_batch(4, seed=step), step)
        torch.stack(list(losses.values())).sum().backward()
        frozen = [p for name, p in vit.named_parameters() if not name.startswith("norm.")]
        assert all(p.grad is None for p in frozen)
        learning = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert learning == []
        optimiser.step(1e-2, optimiser.gradient_norm())
    for name, parameter in vit.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("norm."), name
    assert not any(".blocks." in name or ".patches." in name for name in optimiser.tensors())
    kept = unique_tensors(model)
    assert {name for name in kept if ".vit." in name} == {
        "model.vit.norm.weight", "model.vit.norm.bias",
    }  # fmt: skip
    saved = {"ranks": 1, "data": "", "config": {}}
    Checkpoints(tmp_path, keep=1).save(3, model, optimiser, **saved)
    again = make_model()
    for parameter in again.parameters():
        if parameter.requires_grad:
            parameter.detach().add_(1.0)
    last = Checkpoints(tmp_path, keep=1).last()
    assert last is not None
    last.load(again, Optimiser(again, OptimiserConfig()))
    with torch.no_grad():
        theirs, ours = again.eval()(make_batch(4), 9), model.eval()(make_batch(4), 9)
    assert theirs == ours


def test_modes_leave_the_frozen_encoder_in_evaluation() -> None:
    model = make_model()
    assert model.model.qformer.training
    assert not any(part.training for part in model.model.vit.modules())


@torch.inference_mode()
def test_filter_gives_the_same_in_transformers_and_here(tmp_path: Path) -> None:
    model = make_model().eval()
    model.export_filter(tmp_path, vocabulary(tmp_path / "names"))
    theirs, loading = Blip2ForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    images, text = make_images(2), "a dog on the grass"
    scores = load_filter(str(tmp_path), ScoringConfig(similarity=True), device="cpu").score(
        list(images), [[text]] * 2
    )
    inputs = Blip2Processor.from_pretrained(tmp_path)(
        images=list(images), text=[text] * 2, return_tensors="pt"
    )
    torch.testing.assert_close(inputs.pixel_values, normalised(images), atol=1e-5, rtol=0)
    theirs = theirs.eval()
    itm = theirs(**inputs, use_image_text_matching_head=True).logits_per_image.softmax(-1)[:, 1]
    itc = theirs(**inputs, use_image_text_matching_head=False).logits_per_image.diagonal()
    for i, [score] in enumerate(scores):
        assert score.match_prob == pytest.approx(itm[i].item(), abs=1e-5)
        assert score.similarity == pytest.approx(itc[i].item(), abs=1e-5)


def test_half_precision_is_of_the_frozen_encoder_alone(tmp_path: Path) -> None:
    folder = make_vision_folder(tmp_path / "vit")
    config = replace(CONFIG, image=replace(CONFIG.image, weights=str(folder)))
    names = vocabulary(tmp_path / "names")
    model = Blip2Represent.load(config, vocabulary=names, seed=0, dtype=torch.bfloat16).train()
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    for name, dtype in dtypes.items():
        is_frozen = ".vit." in name and ".norm." not in name
        assert dtype == (torch.bfloat16 if is_frozen else torch.float32), name
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(make_batch(4), 0)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    model.export_filter(tmp_path / "out", names)
    theirs = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    assert not (tmp_path / "out" / "README.md").exists()  # no CLIP's: fp16 has room for it


def test_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch of 1 image has no negatives"):
        make_model().check_batch(1, 1)
    make_model().check_batch(1, 2)


def test_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, image=replace(CONFIG.image, weights=str(tmp_path)))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        Blip2Represent.load(
            config, vocabulary=vocabulary(tmp_path / "names"), seed=0, dtype=torch.float32
        )
