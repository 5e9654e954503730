"""One small experiment, untrained in effect: what is tested is who gets what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from capfilt.bootstrap.config import BootstrapConfig
from capfilt.bootstrap.experiment import Experiment
from capfilt.bootstrap.results import Results

CONFIG = """
seeds: [0]
rounds: 2
world: {web: 96, human: 16, evaluation: 8, side: 32}
pretrain:
  data: &data {image_size: 32, max_tokens: 24, workers: 1, augment: {enabled: false}}
  model:
    image: {width: 24, layers: 1, heads: 2, image_size: 32, patch_size: 16}
    text: {width: 24, layers: 1, heads: 2}
    embedding: 8
    itc: &itc {queue: 0}
  schedule: {warmup_steps: 2}
  loop: &loop {steps: 4, batch_size: 8, log_every: 1, save_every: 1}
captioner: {data: *data, model: {image_size: 32}, optimiser: {lr: 1e-2}, loop: *loop}
filter:
  data: *data
  model: {image_size: 32, itc: *itc}
  optimiser: {lr: 1e-2}
  loop: {steps: 3, batch_size: 8, log_every: 1, save_every: 1}
run:
  captions: {max_length: 12}
  selection: {min_match_prob: 0.2}
evaluate: {k_test: 4, captions: {method: greedy, max_length: 12}}
"""


@contextmanager
def one_thread() -> Iterator[None]:
    """As the processes that are started here: sums of so many parts, and so the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def resolve(*overrides: str) -> BootstrapConfig:
    """The small config with `a.b=c` over it."""
    return Experiment.load().resolve(yaml_text=CONFIG, overrides=overrides)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The experiment's folder and its results, all arms and two rounds."""
    out = tmp_path_factory.mktemp("experiment")
    with one_thread():
        return out, Experiment.load().run(resolve(), out)
