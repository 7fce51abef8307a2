"""Maxima over a dim that is cut: an all-reduce inside of the operation."""

from typing import Any

import torch
from torch import Tensor

from recipes.plan.execute.local_call import LocalCall


def largest(call: LocalCall, target: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``amax``, ``max``, ``any``."""
    return _over_ranks(call, target(*args, **kwargs))


def smallest(call: LocalCall, target: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``amin``, ``min``, ``all``: the largest of what it negates."""
    found = target(*args, **kwargs)
    groups = call.candidates()
    if not groups:
        return found
    if found.dtype == torch.bool:
        return ~_over_ranks(call, ~found)
    return -_over_ranks(call, -found)


def _over_ranks(call: LocalCall, found: Tensor) -> Tensor:
    for group in call.candidates():
        if found.dtype == torch.bool:
            found = group.all_reduce_max(found.to(torch.uint8)).to(torch.bool)
        else:
            found = group.all_reduce_max(found.contiguous())
    return found
