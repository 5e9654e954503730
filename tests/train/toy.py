"""A module and batches that are small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from capfilt.data.batch import Batch
from capfilt.schema import build
from capfilt.train.config import TrainConfig
from capfilt.train.ranks import Ranks
from capfilt.train.training import Training

SIDE = 4


def config(**loop: object) -> TrainConfig:
    """Two epochs of four steps of eight images; checkpoints after 3, 6 and 8 steps."""
    loop = {"epochs": 2, "batch_size": 8, "save_every": 3, "log_every": 1, **loop}
    return build(
        TrainConfig,
        {
            "loop": loop,
            "schedule": {"warmup_steps": 2, "warmup_lr": 1e-4},
            "optimiser": {"lr": 0.01},
            "data": {"image_size": SIDE},
        },
    )


class ToyModel(nn.Module):
    """Two losses; dropout, a queue and a momentum copy, as the real ones have."""

    def __init__(
        self, *, width: int = 8, bad_step: int | None = None, hungry_step: int | None = None
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(3 * SIDE * SIDE, width)
            self.second = nn.Linear(width, 2)
        self.alias = self.second  # a shared part, as the text transformer has
        self.register_buffer("queue", torch.zeros(4, width))
        self.register_buffer("slow", self.first.weight.detach().clone())
        self._bad_step, self._hungry_step = bad_step, hungry_step

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pixels = batch.images.flatten(1).float() / 255
        hidden = nn.functional.dropout(self.first(pixels).tanh(), 0.2, self.training)
        with torch.no_grad():
            self.slow.lerp_(self.first.weight, 0.1)
            self.queue.copy_(torch.cat([self.queue[1:], hidden.mean(0, keepdim=True)]))
        out = self.alias(hidden + self.queue.mean(0))
        if step == self._hungry_step:
            torch.empty(1 << 50)
        scale = torch.tensor(float("nan") if step == self._bad_step else 1.0)
        return {"one": (out[:, 0] - 1).square().mean() * scale, "two": out[:, 1].square().mean()}


class ToyData:
    """Pictures that are a function of their number."""

    steps_per_epoch = 4.0

    fingerprint = "toy"

    left_out: Mapping[str, int] = {}

    def __init__(self, ranks: Ranks, batch_size: int, *, breaks_at: int | None = None) -> None:
        self._ranks, self._size = ranks, batch_size // ranks.count
        self._breaks_at = breaks_at
        self.is_closed = False

    def batches(self, start: int) -> Iterator[Batch]:
        number = start
        while True:
            if number == self._breaks_at:
                raise OSError("the power is gone")
            first = (number * self._ranks.count + self._ranks.rank) * self._size
            yield batch(range(first, first + self._size))
            number += 1

    def close(self) -> None:
        self.is_closed = True


def batch(numbers: range) -> Batch:
    images = [
        torch.randint(
            0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(n), dtype=torch.uint8
        )
        for n in numbers
    ]
    ids = torch.tensor([*numbers])
    keys = [f"toy/00000/{n}" for n in numbers]
    return Batch(torch.stack(images), [[5, 3]] * len(keys), keys, ids, ids)


def training(
    config: TrainConfig, ranks: Ranks, *, breaks_at: int | None = None, **model_options: int
) -> Training:
    model = ToyModel(**model_options)

    def export(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weight.txt").write_text(str(model.first.weight.sum().item()))

    of_pass = config.loop.batch_size // config.loop.accumulate
    data = ToyData(ranks, of_pass, breaks_at=breaks_at)
    return Training(model, data, {"captioner": export})
