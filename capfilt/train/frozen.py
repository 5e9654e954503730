"""Parts of a model that are read from a folder and never learn.

They have no gradients, work in evaluation mode, and stand in no checkpoint of a training, which
reads them again from where they came.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class PartlyFrozen(nn.Module):
    """A model with frozen parts; `state_dict` has all the others."""

    def __init__(self) -> None:
        super().__init__()
        self._still: list[list[nn.Module]] = []  # in lists, where modules are not registered twice
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]

    def freeze(
        self, part: nn.Module, *, but: nn.Module | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Freeze a part that the model holds.

        Args:
            part: All of it.
            but: A module in it that learns all the same.
            dtype: What its parameters are rounded to.
        """
        part.requires_grad_(False).eval()
        if but is not None:
            but.requires_grad_(True)
        for parameter in part.parameters():
            if dtype is not None and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self._still.append([part])

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for (part,) in self._still:
            part.eval()
        return self

    def frozen_names(self) -> set[str]:
        """Of all tensors in frozen parts that do not learn."""
        still = {id(x) for (part,) in self._still for x in (*part.parameters(), *part.buffers())}
        return {
            name
            for tensors in (
                self.named_parameters(remove_duplicate=False),
                self.named_buffers(remove_duplicate=False),
            )
            for name, tensor in tensors
            if id(tensor) in still and not tensor.requires_grad
        }


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(module, PartlyFrozen)
    for name in module.frozen_names():
        state.pop(f"{prefix}{name}", None)
