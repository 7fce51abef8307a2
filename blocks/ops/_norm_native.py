"""The norms and their gradients on a CPU, in C++; what they mean stands in ``_norm.py``."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from blocks.ops._library import functions

CHUNK_ROWS = 64
"""Rows whose part of the weight's gradient is added up in one go, whatever the threads."""


def native_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    is_layer: bool,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and sum on the CPU; ``mean`` and ``rstd``, where given, are filled."""
    x, weight = x.contiguous(), weight.contiguous()  # what follows is written for few calls:
    bias = None if bias is None else bias.contiguous()  # one row takes 5 microseconds in all
    residual = None if residual is None else residual.contiguous()
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    hidden_size = x.shape[-1]
    _forward_functions()[x.dtype](
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        None if mean is None else mean.data_ptr(),
        None if rstd is None else rstd.data_ptr(),
        x.numel() // hidden_size if hidden_size else 0,
        hidden_size,
        eps,
        weight_offset,
        is_layer,
    )
    return y, total


def native_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    dweight: Tensor,
    dbias: Tensor | None,
) -> Tensor:
    """Gradient of the rows; ``dweight`` and ``dbias`` are filled. All are contiguous."""
    dx = torch.empty_like(x)
    hidden_size = x.shape[-1]
    num_rows = rstd.numel()
    partials = torch.empty(
        (2, -(-num_rows // CHUNK_ROWS), hidden_size), dtype=torch.float32, device=x.device
    )
    _backward_functions()[x.dtype](
        dy.data_ptr(),
        _pointer(dtotal),
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(mean),
        rstd.data_ptr(),
        dx.data_ptr(),
        dweight.data_ptr(),
        _pointer(dbias),
        partials.data_ptr(),
        num_rows,
        hidden_size,
        CHUNK_ROWS,
        weight_offset,
    )
    return dx


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _forward_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm", "norm", "ppppppppnnffi")


@functools.cache
def _backward_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm_backward", "norm_backward", "ppppppppppnnnf")
