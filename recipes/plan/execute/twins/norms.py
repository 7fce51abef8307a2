"""Norms: told the local numbers of groups and channels, and given dense tensors.

Torch's kernels read some of theirs as if they were contiguous; autograd, which calls them
otherwise, sees to it.
"""

from typing import Any

from torch import Tensor

from recipes.plan.execute.local_call import LocalCall


def _local_groups(call: LocalCall, at: int, local_channels: int, groups: int) -> int:
    """Groups of the rank's channels; ranks take whole groups."""
    return groups if groups == 1 else local_channels * groups // call.inputs[at].shape[1]


def group_normed(
    call: LocalCall,
    target: Any,
    x: Tensor,
    weight: Any,
    bias: Any,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> Any:
    """``native_group_norm``."""
    local = _local_groups(call, 0, x.shape[1], groups)
    return target(x.contiguous(), weight, bias, x.shape[0], x.shape[1], places, local, eps)


def group_norm_gradient(
    call: LocalCall,
    target: Any,
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Any,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    output_mask: Any,
) -> Any:
    """``native_group_norm_backward``."""
    local = _local_groups(call, 1, x.shape[1], groups)
    sizes = (x.shape[0], x.shape[1], places, local)
    dense = (one.contiguous() for one in (grad, x, mean, rstd))
    return target(*dense, weight, *sizes, output_mask)


def layer_norm_gradient(
    call: LocalCall,
    target: Any,
    grad: Tensor,
    x: Tensor,
    normalized_shape: Any,
    mean: Tensor,
    rstd: Tensor,
    *rest: Any,
) -> Any:
    """``native_layer_norm_backward``."""
    return target(grad, x, normalized_shape, mean.contiguous(), rstd.contiguous(), *rest)
