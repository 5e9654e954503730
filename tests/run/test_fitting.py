"""Batches that do not fit into memory, shown without a GPU by what a GPU would raise."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from capfilt.config import RunConfig
from capfilt.io.inputs import find_shards
from capfilt.models.load import load_captioner, load_filter
from capfilt.run.fitting import GROW_AFTER, Fitting, limit_memory
from capfilt.run.models import inspect_models
from capfilt.run.task import Task
from capfilt.run.worker import Worker
from tests.run.conftest import ledger_rows


class Memory:
    """Has room for so many items at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.asked.append(len(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(items)} items")
        return [-item for item in items]


def test_fitting_halves_until_it_fits_and_remembers() -> None:
    memory, fitting = Memory(3), Fitting()
    assert fitting.in_parts(memory, range(16)) == [-i for i in range(16)]
    assert memory.asked == [16, 8, 4] + [2] * 8
    memory.asked.clear()
    fitting.in_parts(memory, range(16))
    assert memory.asked == [2] * 8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(h)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
    ids=str,
)
def test_whatever_says_that_memory_is_short_halves_the_batch(error: Exception) -> None:
    asked: list[int] = []

    def function(items: Sequence[int]) -> list[int]:
        asked.append(len(items))
        if len(items) > 2:
            raise error
        return list(items)

    assert Fitting().in_parts(function, range(4)) == [0, 1, 2, 3]
    assert asked == [4, 2, 2]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        ValueError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_tried_with_fewer_images(error: Exception) -> None:
    asked: list[int] = []

    def function(items: Sequence[int]) -> list[int]:
        asked.append(len(items))
        raise error

    with pytest.raises(type(error)):
        Fitting().in_parts(function, range(4))
    assert asked == [4]


def test_fitting_grows_again_and_more_rarely_after_each_failure() -> None:
    memory, fitting = Memory(3), Fitting()
    for _ in range(1000):
        fitting.in_parts(memory, range(4))
    trials = [i for i, size in enumerate(memory.asked) if size == 4][1:]
    parts = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert parts == [GROW_AFTER * 2**n + 1 for n in range(1, len(parts) + 1)]
    memory.room = 100
    for _ in range(3000):
        fitting.in_parts(memory, range(16))
    assert memory.asked[-1] == 16


def test_fitting_a_single_item_that_does_not_fit_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Fitting().in_parts(Memory(0), range(4))


def test_fitting_other_errors_are_raised_at_once() -> None:
    calls = []

    def broken(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise RuntimeError("shapes [4, 3] and [2] do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Fitting().in_parts(broken, range(4))
    assert calls == [4]


def test_worker_out_of_memory_gives_the_captions_of_one_with_enough(
    config: RunConfig, web: str, tmp_path: Path
) -> None:
    config = replace(config, compute=replace(config.compute, batch_size=12))
    seen: list[int] = []

    def rows(out: Path, room: int) -> list[dict[str, Any]]:
        captioner = load_captioner(config.captioner, config.captions, seed=config.seed)
        filter_ = load_filter(config.filter, config.scoring)
        caption = captioner.caption

        def within(pixels: Sequence[torch.Tensor], keys: Sequence[str]) -> Any:
            seen.append(len(keys))
            if len(keys) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return caption(pixels, keys)

        captioner.caption = within  # type: ignore[method-assign]
        task = Task(config, inspect_models(config), str(out))
        worker = Worker(task, captioner, filter_)
        for shard in find_shards(web).shards:
            worker.process(shard)
        worker.close()
        return ledger_rows(out)

    whole, parts = rows(tmp_path / "whole", 12), rows(tmp_path / "parts", 5)
    assert set(seen[:4]) == {12}
    assert set(seen[5:]) >= {3}
    for one, other in zip(whole, parts, strict=True):
        assert one.pop("match_prob") == pytest.approx(other.pop("match_prob"), abs=1e-5)
        assert one == other


ITEM_BYTES = 8_000_000


def work_within(limit_bytes: int, results: Any) -> None:
    """Take large items in parts under a limit; tell how many fitted."""

    def fill(part: Sequence[int]) -> list[int]:
        memory = torch.ones(len(part) * ITEM_BYTES, dtype=torch.uint8)
        return [int(memory[i]) for i in range(len(part))]

    limit_memory(own_bytes() + limit_bytes)
    fitting = Fitting()
    done = fitting.in_parts(fill, range(64))
    results.put((sum(done), fitting.most))


def own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def test_memory_limit_on_a_cpu_makes_batches_smaller() -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=work_within, args=(20 * ITEM_BYTES, results))
    process.start()
    done, most = results.get()
    process.join()
    assert done == 64
    assert most == 16
