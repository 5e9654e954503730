from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.train.blip import BlipPretrain, FilterConfig, FilterFinetune
from capfilt.train.itc import ItcConfig, Pairs
from capfilt.train.itm import ItmConfig
from capfilt.train.towers import DropConfig, RecomputeConfig
from tests.train.small import CONFIG, TOKENS, Reference, make_batch, make_model
from tests.train.test_itc import reference as itc_reference


def gradients(model: BlipPretrain, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    losses.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_itc_over_several_steps_is_that_of_transformers_embeddings(tmp_path: Path) -> None:
    model = make_model()  # a queue of 16, four steps of 8: it wraps round
    queue: list[Pairs] = []
    for step in range(4):
        with torch.no_grad():  # as an optimiser would, so that the momentum encoder falls behind
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dim() > 1:
                    parameter.mul_(1.01)
        batch = make_batch(8, seed=step)
        with torch.no_grad():
            found = model(batch, step)["itc"].item()
        own = Reference(model, tmp_path / f"own{step}")
        ids = (batch.image_ids, batch.text_ids)
        mine = Pairs(*own.embeddings(batch.images, batch.texts), *ids)
        slow = copy.deepcopy(model)
        names = dict(slow.matcher.momentum.model.named_parameters())
        with torch.no_grad():
            for name, parameter in slow.matcher.model.named_parameters():
                if name in names:
                    parameter.copy_(names[name])
        teacher = Pairs(
            *Reference(slow, tmp_path / f"slow{step}").embeddings(batch.images, batch.texts), *ids
        )
        expected = itc_reference(mine, [teacher, *queue], 0.4, 0.07)
        assert found == pytest.approx(expected, abs=1e-4)
        queue = [*queue, teacher][-2:]


def test_each_loss_reaches_what_it_trains_and_nothing_else() -> None:
    model = make_model()
    losses = model(make_batch(8), 0)
    reached = {}
    for name, loss in losses.items():
        model.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        reached[name] = {
            n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }

    def has(loss: str, part: str) -> bool:
        return any(part in name for name in reached[loss])

    assert all(has(loss, "vit.blocks.0.qkv.weight") for loss in losses)
    assert all(has(loss, "vit.patches.weight") for loss in losses)
    assert [has(loss, "temperature") for loss in losses] == [True, False, False]
    assert [has(loss, "image_projection") for loss in losses] == [True, False, False]
    assert [has(loss, "text_projection") for loss in losses] == [True, False, False]
    assert [has(loss, "itm_head") for loss in losses] == [False, True, False]
    assert [has(loss, "captioner.head") for loss in losses] == [False, False, True]
    assert [has(loss, ".cross.") for loss in losses] == [False, True, True]
    own = "captioner.text.layers.0.attention"
    assert [has(loss, own) for loss in losses] == [False, False, True]
    encoders = "matcher.model.text.layers.0.attention"
    assert [has(loss, encoders) for loss in losses] == [True, True, False]
    assert all(has(loss, "text.words") for loss in losses)
    assert not any(has(loss, "momentum") for loss in losses)


def test_every_weight_learns() -> None:
    model = make_model()
    found = gradients(model, total(model(make_batch(8), 0)))
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == wanted
    assert not any("momentum" in name for name in found)


@pytest.mark.parametrize("part", ["image", "text"])
def test_activations_computed_again_change_nothing(part: str) -> None:
    drop = DropConfig(text=0.1, path=0.2)
    plain = make_model(drop=drop)
    saving = make_model(drop=drop, recompute=replace(RecomputeConfig(), **{part: True}))
    results = []
    for model in (plain, saving):
        torch.manual_seed(3)
        losses = model(make_batch(8), 0)
        results.append((losses, gradients(model, total(losses))))
    for name, loss in results[0][0].items():
        assert loss.item() == results[1][0][name].item()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient)


def test_dropout_and_drop_path_work_while_training_alone() -> None:
    still, dropping = make_model(), make_model(drop=DropConfig(text=0.1, path=0.5))
    batch = make_batch(8)
    first, second = (total(dropping(batch, 0)).item() for _ in range(2))
    assert first != second
    expected = total(still.eval()(batch, 0)).item()
    assert total(dropping.eval()(batch, 0)).item() != expected  # the queue holds the batch by now
    fresh = make_model(drop=DropConfig(text=0.1, path=0.5)).eval()
    assert total(fresh(batch, 0)).item() == expected


def test_state_holds_all_that_goes_on() -> None:
    model, other = make_model(seed=0), make_model(seed=1)
    batches = [make_batch(8, seed) for seed in range(3)]
    for step in (0, 1):
        model(batches[step], step)
    other.load_state_dict(model.state_dict())
    other.matcher._seed = model.matcher._seed  # the config's, not the state's
    expected, found = model(batches[2], 2), other(batches[2], 2)
    assert {n: loss.item() for n, loss in found.items()} == {
        n: loss.item() for n, loss in expected.items()
    }


def test_bf16_autocast_gives_losses_in_fp32_near_those_of_fp32() -> None:
    batch = make_batch(8)
    expected = make_model()(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = make_model()(batch, 0)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05)


def test_texts_equal_or_of_one_image_are_never_negatives() -> None:
    model, batch = make_model(), make_batch(4)
    batch = replace(
        batch, image_ids=torch.tensor([1, 1, 2, 3]), text_ids=torch.tensor([1, 2, 2, 3])
    )
    forbidden = {(0, 1), (1, 0), (1, 2), (2, 1)}
    for step in range(50):
        with torch.no_grad():
            states = model.matcher.model.vit(batch.images)
            _, drawn = model.matcher.contrast(states, batch, step)
        negatives = drawn._draws.fetch()
        for row, (text, image) in enumerate(zip(negatives.texts, negatives.images, strict=True)):
            assert (row, text) not in forbidden
            assert (row, image) not in forbidden


@pytest.mark.parametrize(
    ("images", "ranks", "negatives", "message"),
    [
        (7, 1, "own_rank", "itc.queue is 16, no multiple of the 7 images of a step on all ranks"),
        (8, 4, "own_rank", "no multiple of the 32 images"),
        (1, 1, "own_rank", "a batch of 1 image has no negatives for ITM: raise the batch size$"),
        (1, 2, "own_rank", "or set itm.negatives to all_ranks"),
    ],
)
def test_batch_that_cannot_work_is_refused(
    images: int, ranks: int, negatives: Any, message: str
) -> None:
    model = make_model(itm=ItmConfig(negatives))
    with pytest.raises(ConfigError, match=message):
        model.check_batch(images, ranks)


def test_batch_that_works_is_not_refused() -> None:
    make_model(itm=ItmConfig("all_ranks")).check_batch(1, 2)
    make_model().check_batch(8, 2)


def test_step_of_one_text_alone_is_refused() -> None:
    batch = replace(make_batch(4), text_ids=torch.ones(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="a step of 4 images per rank has no negatives"):
        make_model()(batch, 0)


def test_training_lowers_every_loss() -> None:
    # Soft targets have an entropy of their own, and a queue makes the task harder as it fills.
    itc = ItcConfig(queue=0, alpha=0.0, momentum=0.9)
    model, batch = make_model(drop=DropConfig(text=0.1), itc=itc), make_batch(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    for step in range(60):
        losses = model(batch, step)
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
        first = first or {name: loss.item() for name, loss in losses.items()}
    for name, loss in losses.items():
        assert loss.item() < 0.9 * first[name], name


def test_seed_decides_new_weights_and_leaves_the_callers_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (BlipPretrain(CONFIG, TOKENS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    name = "matcher.model.text.words.weight"
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert one.state_dict()[name].std() == pytest.approx(0.02, rel=0.1)


def test_new_weights_ask_no_gpu_for_its_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", asked.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    BlipPretrain(CONFIG, TOKENS, seed=0)
    assert asked == []


def test_finetuning_without_a_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start is not set: give the folder of a BlipForImage"):
        FilterFinetune.load(FilterConfig(), vocabulary=tmp_path, seed=0)
