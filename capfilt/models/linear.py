"""Linear layers at the speed of the processor, for inference.

On a CPU torch multiplies fp32 matrices with MKL, which on AMD's processors reaches less than half
of what oneDNN does (104 against 235 GFLOP/s on one Zen 5 core), and brings a bf16 weight into the
processor's order anew at each call. torch's own compiler has an operator that takes a weight in
that order and applies GELU on the way out; `prepare_for_inference` puts it in place of the linear
layers of a finished model. fp32 stays fp32: the operator rounds only if the process asks torch for
a lower `float32_matmul_precision`.

The operator is private to torch. Where it is missing, does not work, or was never measured (other
processors, CUDA), the layers stay what they are: results are the same up to rounding.

Shapes: M rows, I width in, O width out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Multiplier = Callable[[Tensor], Tensor]  # [*, I] -> [*, O]


class LinearGelu(nn.Linear):
    """A linear layer and the exact GELU after it, so that both can be done in one pass."""

    def forward(self, x: Tensor) -> Tensor:  # [*, I] -> [*, O]
        return F.gelu(super().forward(x))


class LinearQuickGelu(nn.Linear):
    """A linear layer and OpenAI's approximation of GELU after it."""

    def forward(self, x: Tensor) -> Tensor:  # [*, I] -> [*, O]
        return quick_gelu(super().forward(x))


def quick_gelu(x: Tensor) -> Tensor:
    """As the CLIP of OpenAI has it: `x * sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)


class PackedLinear(nn.Module):
    """A linear layer whose weight is in the processor's order. It cannot be trained or saved."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, quick_gelu: bool = False
    ) -> None:
        super().__init__()
        # Not registered: nothing that walks over parameters can do anything with this order.
        self._weight = _operators()._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()
        self._gelu, self._quick_gelu = gelu, quick_gelu

    def forward(self, x: Tensor) -> Tensor:  # [*, I] -> [*, O]
        x = _multiply(x, self._weight, self._bias, gelu=self._gelu)
        return quick_gelu(x) if self._quick_gelu else x


def prepare_for_inference(model: nn.Module) -> None:
    """Give a model on its device and in its dtype the fastest linear layers there, in place.

    The weights move into them, so that memory does not hold both: what is to be trained or saved
    must not be prepared. A module with a `pack` method first makes what it needs besides.
    """
    for module in list(model.modules()):
        if (pack := getattr(module, "pack", None)) is not None:
            pack()
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and can_pack(child.weight):
                packed = PackedLinear(
                    child.weight,
                    child.bias,
                    gelu=isinstance(child, LinearGelu),
                    quick_gelu=isinstance(child, LinearQuickGelu),
                )
                setattr(module, name, packed)


def can_pack(weight: Tensor) -> bool:
    """Whether `PackedLinear` takes such a weight here."""
    return weight.device.type == "cpu" and weight.dtype in _packable()


def multiplier(matrix: Tensor) -> Multiplier:
    """Multiplies with the transposed matrix [O, I], many times."""
    if can_pack(matrix):
        return PackedLinear(matrix, None)
    return partial(F.linear, weight=matrix)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x [M, I] times the transposed y [O, I], both of one dtype: [M, O]."""
    if y.dtype == torch.float32 and can_pack(y):
        # Only contiguous factors: with others oneDNN falls back to plain loops.
        return _multiply(x, y.contiguous(), None)
    return x @ y.T


@functools.cache
def _packable() -> frozenset[torch.dtype]:
    """The dtypes for which the operator exists and works."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return frozenset()
    return frozenset(dtype for dtype in (torch.float32, torch.bfloat16) if _works(dtype))


def _works(dtype: torch.dtype) -> bool:
    x, weight = torch.linspace(-1, 1, 64, dtype=dtype).view(2, 2, 16)
    try:
        if dtype == torch.bfloat16 and not _operators()._is_mkldnn_bf16_supported():
            return False
        packed = PackedLinear(weight, None, gelu=True)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(packed, F.gelu(x @ weight.T), rtol=0.02)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    name, algorithm = ("gelu", "none") if gelu else ("none", "")
    return _operators()._linear_pointwise(x, weight, bias, name, [], algorithm)  # type: ignore[no-any-return]


def _operators() -> Any:
    return torch.ops.mkldnn
