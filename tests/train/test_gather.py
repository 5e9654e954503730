"""Two ranks over gloo with half a batch each are one rank with the joint batch."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capfilt.data.batch import Batch
from capfilt.train.blip import BlipPretrain, CaptionerConfig, CaptionerFinetune
from capfilt.train.blip2_generate import Blip2Generate
from capfilt.train.itm import ItmConfig
from tests.blip2_checkpoints import Kind
from tests.train import small_blip2
from tests.train.small import TOKENS, make_batch, make_model, rows
from tests.train.small_language import batch_of, make_generative

STEPS = 3
Losses = dict[str, float]


def batch_at(step: int) -> Batch:
    """Eight pairs; two images come twice, on one rank and across both, and so does a text."""
    batch = make_batch(8, seed=step)
    image_ids, text_ids = batch.image_ids.clone(), batch.text_ids.clone()
    image_ids[1] = image_ids[0]
    image_ids[7] = image_ids[3]
    text_ids[5] = text_ids[2]
    return replace(batch, image_ids=image_ids, text_ids=text_ids)


def pretraining() -> BlipPretrain:
    return make_model(itm=ItmConfig("all_ranks"))


def finetuning() -> CaptionerFinetune:
    return CaptionerFinetune(CaptionerConfig(), pretraining().captioner, TOKENS)


def lonely() -> BlipPretrain:
    return make_model()  # negatives from the own rank


def lonely_batch(step: int) -> Batch:
    """The first rank's images are all the same: it has no negatives of its own."""
    batch = make_batch(8, seed=step)
    return replace(batch, image_ids=torch.tensor([0, 0, 0, 0, 1, 2, 3, 4]))


def cases(folder: str) -> dict[str, Any]:
    """How to make a model, and its batch of a step; a language model lies below the folder."""

    def generating(kind: Kind) -> Blip2Generate:
        return make_generative(Path(folder, kind), kind)

    of_tokens = cache(generating)  # loading takes longer than a step

    def captions_at(kind: Kind, step: int) -> Batch:
        return batch_of(of_tokens(kind), 8, seed=step)  # the second rank's texts are longer

    return {
        "pretraining": (pretraining, batch_at),
        "finetuning": (finetuning, batch_at),
        "representing": (small_blip2.make_model, batch_at),
        "generating": (partial(generating, "t5"), partial(captions_at, "t5")),
        "continuing": (partial(generating, "opt"), partial(captions_at, "opt")),
        "lonely": (lonely, lonely_batch),
    }


def train(model: nn.Module, make: Any, wanted: slice) -> dict[str, Any]:
    """A few steps of SGD; losses and gradients of each, and the state at the end."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses: list[Losses] = []
    gradients: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        found = model(rows(make(step), wanted), step)
        optimiser.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimiser.step()
        losses.append({name: loss.item() for name, loss in found.items()})
        gradients.append(
            {
                name.removeprefix("module."): p.grad.clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }
        )
    state = {n.removeprefix("module."): x.clone() for n, x in model.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=300),
    )
    found = {}
    for name, (build, make) in cases(folder).items():
        model = DistributedDataParallel(build(), broadcast_buffers=False)
        found[name] = train(model, make, slice(4 * rank, 4 * rank + 4))
    torch.save(found, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    for kind in ("t5", "opt"):  # one rank alone would not be let to save them
        make_generative(made / kind, kind)
    return made


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize(
    "case", ["pretraining", "finetuning", "representing", "generating", "continuing"]
)
def test_losses_and_gradients_are_those_of_the_joint_batch(
    case: str, folder: Path, ranks: list[dict[str, Any]]
) -> None:
    build, make = cases(str(folder))[case]
    alone = train(build(), make, slice(0, 8))
    first, second = (found[case] for found in ranks)
    for step in range(STEPS):
        for name, loss in alone["losses"][step].items():
            mean = (first["losses"][step][name] + second["losses"][step][name]) / 2
            assert mean == pytest.approx(loss, abs=2e-5), (step, name)
        assert alone["gradients"][step].keys() == first["gradients"][step].keys()
        for name, gradient in alone["gradients"][step].items():
            for rank in (first, second):
                torch.testing.assert_close(
                    rank["gradients"][step][name], gradient, atol=1e-5, rtol=1e-3
                )
    for name, tensor in alone["state"].items():
        for rank in (first, second):
            torch.testing.assert_close(rank["state"][name], tensor, atol=1e-5, rtol=1e-3)


def test_queues_are_equal_on_all_ranks_to_the_last_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["pretraining"]["state"] for found in ranks)
    queue = [name for name in first if ".queue." in name]
    assert len(queue) == 5
    assert all(torch.equal(first[name], second[name]) for name in queue)


def test_rank_without_negatives_waits_for_no_one(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["lonely"]["losses"] for found in ranks)
    assert all(losses["itm"] == 0 for losses in first)
    assert all(losses["itm"] > 0 for losses in second)
