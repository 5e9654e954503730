from __future__ import annotations

import hashlib

import numpy as np
import torch

from capfilt.models.uniforms import uniforms

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The published generator, step by step in whole numbers."""
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def documented(seed: int, key: str, caption: int, step: int) -> float:
    """The number as the module's docstring defines it."""
    name = f"{seed}/{caption}/{key}".encode("utf-8", "surrogatepass")
    stream = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    return (splitmix64((stream + (step + 1) * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53


def test_splitmix64_gives_its_published_first_output() -> None:
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # of seed 0


def test_uniforms_are_as_documented() -> None:
    keys = ["000000001", "schlüssel", "odd/key \udcff"]
    drawn = uniforms(7, keys, 2, 4)
    assert drawn.shape == (3, 2, 4)
    for i, key in enumerate(keys):
        for caption in range(2):
            for step in range(4):
                assert drawn[i, caption, step] == documented(7, key, caption, step)


def test_uniforms_differ_by_seed_key_caption_and_step() -> None:
    drawn = uniforms(1, ["1/1", "1", "11"], 12, 20)
    other_seed = uniforms(11, ["1/1", "1", "11"], 12, 20)
    together = np.concatenate([drawn, other_seed]).ravel()
    assert len(np.unique(together)) == together.size


def test_uniforms_are_uniform() -> None:
    drawn = uniforms(0, [str(i) for i in range(2000)], 2, 10)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # By step across keys, and by key across steps: 100 bins, 400 expected in each.
    counts = np.histogram(drawn.ravel(), bins=100, range=(0, 1))[0]
    chi_square = float(((counts - 400) ** 2 / 400).sum())
    assert torch.special.gammaincc(torch.tensor(99 / 2), torch.tensor(chi_square / 2)) > 1e-4
