from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capfilt.errors import ModelError
from capfilt.train.config import OptimiserConfig
from capfilt.train.optimiser import Optimiser
from capfilt.train.stage import Stage
from tests.train.small import make_batch
from tests.train.small_blip2 import make_model


def moved(*, decay_all: bool) -> dict[str, bool]:
    """Which parameters that get gradients of zero a step moves: those that decay."""
    model = make_model()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimiser = Optimiser(model, OptimiserConfig(weight_decay=0.1, decay_all=decay_all))
    for parameter in learned.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(1.0, optimiser.gradient_norm())
    for name, parameter in learned.items():
        moves = not torch.equal(parameter, before[name])
        torch.testing.assert_close(parameter, before[name] * (0.9 if moves else 1.0))
    return {name: not torch.equal(p, before[name]) for name, p in learned.items()}


def test_everything_decays_unless_biases_and_norms_are_spared() -> None:
    assert all(moved(decay_all=True).values())
    spared = {name for name, moves in moved(decay_all=False).items() if not moves}
    shapes = {name: p.ndim for name, p in make_model().named_parameters() if p.requires_grad}
    assert spared == {name for name, sides in shapes.items() if sides <= 1}
    for name in ("itc.temperature", "model.vit.norm.weight", "model.itm_head.bias"):
        assert name in spared
    for name in ("model.qformer.queries", "model.qformer.words.weight", "model.itm_head.weight"):
        assert name not in spared


@pytest.mark.parametrize(
    ("name", "spares"), [("blip_pretrain", False), ("blip2_stage1", True), ("blip2_stage2", True)]
)
def test_blip2s_stages_spare_biases_and_norms_as_their_code_does(name: str, spares: bool) -> None:
    assert Stage.load(name).config.optimiser.decay_all is not spares


def stepped(*, decay_all: bool) -> Optimiser:
    model = make_model()
    optimiser = Optimiser(model, OptimiserConfig(decay_all=decay_all))
    torch.stack(list(model(make_batch(4), 0).values())).sum().backward()
    optimiser.step(1e-3, optimiser.gradient_norm())
    return optimiser


def test_state_is_found_by_name_in_whatever_order_it_was_kept() -> None:
    kept = stepped(decay_all=True).tensors()
    taken = stepped(decay_all=False)
    assert list(taken.tensors()) != list(kept)  # torch's numbers are others
    blank: dict[str, Tensor] = {name: torch.zeros_like(x) for name, x in kept.items()}
    for state in (blank, kept):
        taken.load(state, "here")
        found = taken.tensors()
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
    with pytest.raises(ModelError, match="here: has other, which this model does not train"):
        taken.load({"exp_avg/other": torch.zeros(1)}, "here")
