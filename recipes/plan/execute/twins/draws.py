"""Random numbers: drawn for the whole tensor from its content key, of which a rank takes its part.

So a plan draws what every other plan draws, and a recomputation what the first pass drew.
"""

from typing import Any

import torch
from torch import Tensor

from recipes.plan.execute.local_call import LocalCall


def _uniform(call: LocalCall, at: int, like: Tensor) -> Tensor:
    """Uniform numbers below 1 for the rank's part of an output."""
    shape = call.outputs[at].shape
    found = torch.rand(shape, generator=call.generator(like.device), device=like.device)
    for dim, run in enumerate(call.output_runs(at)):
        found = found.narrow(dim, run.start, run.size)
    return found


def dropped(
    call: LocalCall, target: Any, x: Tensor, p: float, train: bool | None = None
) -> tuple[Tensor, Tensor]:
    """``native_dropout``: what is kept, scaled up, and the mask."""
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = _uniform(call, 0, x) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * mask * scale, mask


def bernoulli(call: LocalCall, target: Any, x: Tensor, p: Any = None, **_: Any) -> Tensor:
    """Ones with probability ``p``, or with those of ``x``."""
    drawn = _uniform(call, 0, x)
    return (drawn < (x if not isinstance(p, float) else p)).to(x.dtype)


def uniform_like(call: LocalCall, target: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """``rand_like``."""
    return _uniform(call, 0, x).to(kwargs.get("dtype") or x.dtype)


def uniform(call: LocalCall, target: Any, size: Any, **kwargs: Any) -> Tensor:
    """``rand``."""
    like = torch.empty(0, dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    return _uniform(call, 0, like).to(like.dtype)
