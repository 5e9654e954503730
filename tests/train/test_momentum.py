from __future__ import annotations

import torch

from tests.train.small import make_batch, make_model


def test_every_weight_is_the_weighted_mean_of_its_past() -> None:
    model = make_model()
    source, momentum = model.matcher.model, model.matcher.momentum
    expected = {name: p.double() for name, p in momentum.model.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.1 * (step + 1))
        momentum.update(source, 0.9)
        theirs = dict(source.named_parameters())
        expected = {n: 0.9 * old + 0.1 * theirs[n].double() for n, old in expected.items()}
    for name, parameter in momentum.model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-6, rtol=0)


def test_it_holds_what_makes_embeddings_and_nothing_else() -> None:
    model = make_model()
    theirs = {n for n, _ in model.matcher.model.named_parameters()}
    ours = {n for n, _ in model.matcher.momentum.model.named_parameters()}
    absent = {n for n in theirs if ".cross." in n or n.startswith("itm_head")}
    assert ours == theirs - absent
    assert absent


def test_it_is_not_trained_and_never_drops_anything() -> None:
    momentum = make_model().train().matcher.momentum
    assert not any(p.requires_grad for p in momentum.parameters())
    assert not any(module.training for module in momentum.modules())


def test_passes_of_one_step_move_it_once_and_evaluation_never() -> None:
    model, batch = make_model(), make_batch(4)
    with torch.no_grad():
        for parameter in model.matcher.model.parameters():
            parameter.add_(0.1)
    weight = model.matcher.momentum.model.image_projection.weight
    before = weight.clone()
    model.eval()(batch, 0)
    assert torch.equal(weight, before)
    model.train()(batch, 1)
    once = weight.clone()
    torch.testing.assert_close(once, before + 0.005 * 0.1)
    model(batch, 1)
    assert torch.equal(weight, once)
    model(batch, 2)
    assert not torch.equal(weight, once)
