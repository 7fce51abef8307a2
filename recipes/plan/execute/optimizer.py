"""Optimizers that go element by element, on whatever part of a parameter a rank holds."""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class Optimizer(Protocol):
    """A step from parameter and gradient, in place.

    moments: names of the tensors of state a parameter has; float32, or wider where it is.
    """

    @property
    def moments(self) -> tuple[str, ...]: ...

    def update(self, parameter: Tensor, gradient: Tensor, state: State, step: int) -> None:
        """Change ``parameter`` and ``state``.

        Args:
            step: counted from 1.
        """
        ...


def new_state(
    optimizer: Optimizer,
    parameter: Tensor,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> State:
    """Zeros for the moments; a float32 copy of a parameter that is kept narrower.

    Args:
        parameter: its values, as exact as they are known.
        dtype: what the parameter is kept in. device: where. Default: as ``parameter`` is.
    """
    kept = parameter.dtype if dtype is None else dtype
    wide = torch.promote_types(kept, torch.float32)
    device = parameter.device if device is None else device
    state = {
        name: torch.zeros(parameter.shape, dtype=wide, device=device) for name in optimizer.moments
    }
    if kept != wide:
        state["master"] = torch.empty(parameter.shape, dtype=wide, device=device).copy_(parameter)
    return state


def apply(
    optimizer: Optimizer, parameter: Tensor, gradient: Tensor, state: State, step: int
) -> None:
    """A step of a parameter, through its float32 copy where it has one."""
    master = state.get("master")
    if master is None:
        optimizer.update(parameter, gradient, state, step)
        return
    optimizer.update(master, gradient.to(master.dtype), state, step)
    parameter.copy_(master)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with weight decay on the parameter itself, as ``torch.optim.AdamW``.

    Reference:
        Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2

    @property
    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def update(self, parameter: Tensor, gradient: Tensor, state: State, step: int) -> None:
        first, second = self.betas
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        parameter.mul_(1 - self.lr * self.weight_decay)
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = square.sqrt().mul_((1 - second**step) ** -0.5).add_(self.eps)
        parameter.addcdiv_(mean, root, value=-self.lr / (1 - first**step))


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum, as ``torch.optim.SGD``."""

    lr: float = 1e-2
    momentum: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    @torch.no_grad()
    def update(self, parameter: Tensor, gradient: Tensor, state: State, step: int) -> None:
        if self.momentum:
            gradient = state["momentum"].mul_(self.momentum).add_(gradient)
        parameter.add_(gradient, alpha=-self.lr)
