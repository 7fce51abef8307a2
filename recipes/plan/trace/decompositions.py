"""Operations written as sums, maxima and elementwise steps, so that they can be cut.

A mean becomes a sum and a division by the count of all elements, so that ranks which hold a run
each have addends; a softmax over the vocabulary becomes a maximum, a sum and elementwise steps, so
that the vocabulary can be cut; a batch norm becomes sums over the batch. What is left whole is
what is never cut inside: attention, layer norm, a softmax over keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recipes.plan.trace import batch_norm

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Overload -> what it is made of."""
    return {
        aten.mean.default: _mean,
        aten.mean.dim: _mean,
        aten.var.correction: _var,
        aten.var_mean.correction: _var_mean,
        aten.native_batch_norm.default: _batch_norm,
        aten.native_batch_norm_backward.default: batch_norm.backward,
        aten._native_batch_norm_legit_functional.default: batch_norm.forward,
        aten._native_batch_norm_legit.no_stats: _batch_norm_no_stats,
        aten._log_softmax.default: _log_softmax,
        aten._log_softmax_backward_data.default: _log_softmax_backward,
        aten.nll_loss_forward.default: _nll,
        aten.nll_loss_backward.default: _nll_backward,
        aten.mse_loss.default: _mse,
        aten.mse_loss_backward.default: _mse_backward,
        aten.binary_cross_entropy_with_logits.default: _bce,
    }


def _mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dims = _dims(x, dim)
    return torch.sum(x, dims, keepdim, dtype=dtype) / _count(x, dims)


def _var(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _var_mean(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    dims = _dims(x, dim)
    mean = _mean(x, dims, True)
    centred = x - mean
    count = _count(x, dims) - (1.0 if correction is None else correction)
    var = torch.sum(centred * centred, dims, keepdim) / count
    return var, mean if keepdim else torch.sum(x, dims) / _count(x, dims)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    made = batch_norm.forward(x, weight, bias, running_mean, running_var, training, momentum, eps)
    return made[:3]


def _batch_norm_no_stats(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return batch_norm.with_statistics(x, weight, bias, eps)[:3]


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if half_to_float:
        x = x.float()
    shifted = x - torch.amax(x, [dim], keepdim=True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), [dim], keepdim=True))


def _log_softmax_backward(
    grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype
) -> Tensor:
    total = torch.sum(grad, [dim], keepdim=True)
    return (grad - torch.exp(output) * total).to(input_dtype)


def _nll(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Sums over tokens of masked lookups; the count of tokens is a sum as well."""
    kept = target != ignore_index
    safe = torch.where(kept, target, 0)
    picked = -torch.gather(x, -1, safe.unsqueeze(-1)).squeeze(-1)
    scale = kept.to(x.dtype) if weight is None else weight[safe] * kept.to(x.dtype)
    picked = torch.where(kept, picked if weight is None else picked * weight[safe], 0.0)
    if reduction == 0:
        return picked, x.new_zeros(())
    dims = list(range(picked.dim()))
    total = torch.sum(scale, dims)
    loss = torch.sum(picked, dims)
    return (loss / total if reduction == 1 else loss), total


def _nll_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    kept = target != ignore_index
    safe = torch.where(kept, target, 0)
    each = -grad / total_weight if reduction == 1 else -grad
    if weight is not None:
        each = each * weight[safe]
    each = torch.where(kept, each, 0.0).to(x.dtype)
    zeros = torch.zeros_like(x)
    return torch.scatter(zeros, -1, safe.unsqueeze(-1), each.expand_as(kept).unsqueeze(-1))


def _mse(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    difference = x - target
    return _reduced(difference * difference, reduction)


def _mse_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    norm = 2.0 / x.numel() if reduction == 1 else 2.0
    return (x - target) * norm * grad


def _bce(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    log_sigmoid = torch.nn.functional.logsigmoid(x)
    if pos_weight is None:
        loss = (1 - target) * x - log_sigmoid
    else:
        loss = (1 - target) * x - ((pos_weight - 1) * target + 1) * log_sigmoid
    return _reduced(loss if weight is None else loss * weight, reduction)


def _reduced(x: Tensor, reduction: int) -> Tensor:
    if reduction == 0:
        return x
    total = torch.sum(x, list(range(x.dim())))
    return total / x.numel() if reduction == 1 else total


def _dims(x: Tensor, dim: Sequence[int] | None) -> list[int]:
    return list(dim) if dim else list(range(x.dim()))


def _count(x: Tensor, dims: Sequence[int]) -> int:
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return count
