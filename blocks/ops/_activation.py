"""The fast implementations of the activations and the operator with their gradient.

``blocks::activation`` keeps its input and computes the activation again on the way back.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blocks._autograd import Operation
from blocks.ops._library import functions

TILE = 1024
"""Results of one Triton program."""


def activate(x: Tensor, activation: str, gated: bool, impl: str, traced: bool) -> Tensor:
    """The activation by a fast implementation; ``traced`` where a gradient or graph is made."""
    if traced:
        return ACTIVATION(x, activation, gated, impl)
    return _run(x, activation, gated, impl)


def _run(x: Tensor, activation: str, gated: bool, impl: str) -> Tensor:
    x = x.contiguous()
    hidden_size = x.shape[-1] // 2 if gated else x.numel()  # else all is one long row
    y = x.new_empty(*x.shape[:-1], hidden_size) if gated else torch.empty_like(x)
    num_rows = y.numel() // hidden_size if hidden_size else 0
    if impl == "native":
        run = _functions(f"{activation}_and_mul", "ppnn")[x.dtype]
        run(x.data_ptr(), y.data_ptr(), num_rows, hidden_size)
    elif num_rows:
        from blocks.ops._triton.activation import _activation_kernel

        launch: Any = _activation_kernel[_grid(num_rows, hidden_size)]
        launch(x, y, hidden_size, ACTIVATION=activation, GATED=gated, TILE=TILE)
    return y


def _fake(x: Tensor, activation: str, gated: bool, impl: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2) if gated else x.new_empty(x.shape)


def _backward(dy: Tensor, x: Tensor, activation: str, gated: bool, impl: str) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    hidden_size = x.shape[-1] // 2 if gated else x.numel()
    num_rows = dy.numel() // hidden_size if hidden_size else 0
    if impl == "native":
        run = _functions(f"{activation}_and_mul_backward", "pppnn")[x.dtype]
        run(dy.data_ptr(), x.data_ptr(), dx.data_ptr(), num_rows, hidden_size)
    elif num_rows:
        from blocks.ops._triton.activation import _activation_backward_kernel

        launch: Any = _activation_backward_kernel[_grid(num_rows, hidden_size)]
        launch(dy, x, dx, hidden_size, ACTIVATION=activation, GATED=gated, TILE=TILE)
    return dx


def _fake_backward(dy: Tensor, x: Tensor, activation: str, gated: bool, impl: str) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def _gradients(ctx: Any, backward: Callable[..., Any], dy: Tensor | None) -> tuple[Any, ...]:
    dx = None if dy is None else backward(dy, *ctx.saved_tensors, *ctx.options)
    return dx, None, None, None


ACTIVATION = Operation(
    "activation",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_backward,
    fake_backward=_fake_backward,
    gradients=_gradients,
)
"""x, activation, gated, impl to one output."""


def _grid(num_rows: int, hidden_size: int) -> tuple[int]:
    return (num_rows * -(-hidden_size // TILE),)


@functools.cache
def _functions(name: str, arguments: str) -> dict[torch.dtype, Callable[..., None]]:
    return functions("activation", name, arguments)
