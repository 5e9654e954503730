"""AdamW, and its state as tensors by name: a checkpoint holds no pickles."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capfilt.errors import ModelError
from capfilt.train.config import OptimiserConfig


class Optimiser:
    """AdamW over the parameters that learn, with gradients clipped on demand."""

    def __init__(self, model: nn.Module, config: OptimiserConfig) -> None:
        learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decaying = [(name, p) for name, p in learned if config.decay_all or p.ndim > 1]
        others = [(name, p) for name, p in learned if not config.decay_all and p.ndim <= 1]
        # torch numbers parameters in the order of its groups.
        self._names = [name for name, _ in (*decaying, *others)]
        self._parameters = [p for _, p in (*decaying, *others)]
        self._config = config
        groups = ((decaying, config.weight_decay), (others, 0.0))
        self._adamw = torch.optim.AdamW(
            [{"params": [p for _, p in of], "weight_decay": by} for of, by in groups if of],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,  # one kernel for all parameters, on CUDA and on a CPU
        )

    @property
    def size_bytes(self) -> int:
        """Of its state once it has taken a step."""
        return sum(2 * p.numel() * p.element_size() for p in self._parameters)

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together, on their device."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def step(self, lr: float, norm: Tensor) -> None:
        """Take a step, then forget the gradients.

        Args:
            lr: Of this step.
            norm: From `gradient_norm`.
        """
        if self._config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.clip_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state, as `exp_avg/<parameter>` and so on."""
        state = self._adamw.state_dict()["state"]
        return {
            f"{kind}/{self._names[index]}": tensor
            for index, kinds in state.items()
            for kind, tensor in kinds.items()
        }

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take a state by `tensors` up.

        Raises:
            ModelError: It is of other parameters; `where` names the checkpoint.
        """
        index = {name: i for i, name in enumerate(self._names)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if name not in index:
                raise ModelError(f"{where}: has {name}, which this model does not train")
            state.setdefault(index[name], {})[kind] = tensor
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": state, "param_groups": groups})
