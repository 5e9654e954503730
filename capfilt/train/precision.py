"""fp32 matrix products at the processor's own rate, where that costs no digit.

On a CPU torch multiplies fp32 matrices with MKL, which on AMD's processors reaches less than half
of what oneDNN does. Asked for the precision "medium" it takes oneDNN, which rounds to bf16 on
processors with matrix units (AMX) and nowhere else. On CUDA the same word would mean TF32, for the
similarities of ITC, too: there nothing is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Within it, forward and backward passes on a CPU take the faster library if it is exact."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and before == "highest" and _is_exact():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _is_exact() -> bool:
    """Whether "medium" keeps fp32's digits here: bf16 would be off by some 1e-3."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 256, 256, generator=generator, dtype=torch.float64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        product = x.float() @ y.float()
    finally:
        torch.set_float32_matmul_precision(before)
    return torch.allclose(product.double(), x @ y, rtol=0, atol=1e-4)
