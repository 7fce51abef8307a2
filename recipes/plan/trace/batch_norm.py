"""The parts of a batch norm, each one operation: sums over the batch, and what is done with them.

Ranks that hold a part of the batch have addends of the sums; the elementwise parts are done on
what a rank has. Counts are those of the whole batch and are given. Written with aten operations
alone, a norm is five times as many and keeps several copies of its input.

Reference:
    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1 and the gradients after it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor]


@torch.library.custom_op("llm_blocks::centred_squares", mutates_args=())
def centred_squares(x: Tensor, mean: Tensor) -> Tensor:
    """Sums of ``(x - mean) ** 2`` of every channel of x [batch, channel, ...]."""
    return (x - _along(x, mean)).square().sum(_rows(x))


@centred_squares.register_fake
def _(x: Tensor, mean: Tensor) -> Tensor:
    return torch.empty_like(mean)


@torch.library.custom_op("llm_blocks::normalise_channels", mutates_args=())
def normalise_channels(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """``(x - mean) * inverse * weight + bias``, channel by channel."""
    scale = inverse * weight
    return (x - _along(x, mean)) * _along(x, scale) + _along(x, bias)


@torch.library.custom_op("llm_blocks::channel_gradients", mutates_args=())
def channel_gradients(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Parts:
    """Gradients of bias and weight: sums of grad, and of grad times the normalised x."""
    normed = (x - _along(x, mean)) * _along(x, inverse)
    return grad.sum(_rows(x)), (grad * normed).sum(_rows(x))


@channel_gradients.register_fake
def _(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Parts:
    return torch.empty_like(mean), torch.empty_like(mean)


@torch.library.custom_op("llm_blocks::normalised_gradient", mutates_args=())
def normalised_gradient(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    bias_grad: Tensor,
    weight_grad: Tensor,
    count: int,
) -> Tensor:
    """The gradient of x, from those of bias and weight over the whole batch.

    Args:
        count: elements of a channel in the whole batch.
    """
    normed = (x - _along(x, mean)) * _along(x, inverse)
    inner = grad - _along(x, bias_grad) / count - normed * _along(x, weight_grad) / count
    return inner * _along(x, inverse * weight)


@normalise_channels.register_fake
@normalised_gradient.register_fake
def _(like: Tensor, *others: Tensor | int) -> Tensor:
    """Of the shape of the first."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``aten._native_batch_norm_legit_functional`` gives."""
    if not training:
        inverse = torch.rsqrt(running_var + eps)
        out = _normalised(x, running_mean, inverse, weight, bias)
        empty = x.new_empty((0,))
        return out, empty, empty, running_mean.clone(), running_var.clone()
    out, mean, inverse, var = with_statistics(x, weight, bias, eps)
    count = count_of(x)
    new_mean = running_mean * (1 - momentum) + mean * momentum
    new_var = running_var * (1 - momentum) + var * (momentum * count / max(1, count - 1))
    return out, mean, inverse, new_mean, new_var


def with_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, mean, inverse deviation, variance) by the statistics of this batch."""
    mean = torch.sum(x, _rows(x)) / count_of(x)
    var = torch.ops.llm_blocks.centred_squares(x, mean) / count_of(x)
    inverse = torch.rsqrt(var + eps)
    return _normalised(x, mean, inverse, weight, bias), mean, inverse, var


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_inverse: Tensor | None,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``aten.native_batch_norm_backward`` gives."""
    if training:
        assert save_mean is not None
        assert save_inverse is not None
        mean, inverse = save_mean, save_inverse
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, inverse = running_mean, torch.rsqrt(running_var + eps)
    sums = torch.ops.llm_blocks.channel_gradients(grad, x, mean, inverse)
    weight = torch.ones_like(inverse) if weight is None else weight
    if training:
        x_grad = torch.ops.llm_blocks.normalised_gradient(
            grad, x, mean, inverse, weight, *sums, count_of(x)
        )
    else:
        x_grad = grad * _along(x, inverse * weight)
    return x_grad, sums[1], sums[0]


def count_of(x: Tensor) -> int:
    """Elements of a channel of x [batch, channel, ...]."""
    return x.numel() // x.shape[1]


def _normalised(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    weight = torch.ones_like(inverse) if weight is None else weight
    bias = torch.zeros_like(inverse) if bias is None else bias
    return torch.ops.llm_blocks.normalise_channels(x, mean, inverse, weight, bias)


def _along(x: Tensor, channels: Tensor) -> Tensor:
    """A value for each channel, in a shape that broadcasts to x."""
    return channels.reshape(-1, *[1] * (x.dim() - 2))


def _rows(x: Tensor) -> list[int]:
    """All dims but the channels'."""
    return [dim for dim in range(x.dim()) if dim != 1]
