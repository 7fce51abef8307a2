"""``WeightQueue``: weight gradients of linear layers, put aside in the backward."""

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class WeightQueue(TorchFunctionMode):
    """While active, every ``F.linear`` by one of ``weights`` puts its weight gradient aside.

    The backward of such a call gives the gradients of input and bias and queues the operands of
    the weight's product; ``take`` makes the products. They are the very calls autograd would have
    made, so the bits are the same. A call autograd would treat otherwise (weights that are no
    plain leaves, strided inputs) is left to autograd, and so are all other operations: their
    weight gradients come with the backward.
    """

    def __init__(self, weights: Container[int]) -> None:
        """
        Args:
            weights: ``id`` of every parameter whose gradient may be put aside.
        """
        super().__init__()
        self._weights = weights
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and torch.is_grad_enabled():
            x, weight, bias = _operands(*args, **kwargs)
            if id(weight) in self._weights and self._takes(x, weight):
                return _Linear.apply(x, weight.detach(), bias, weight, self._products)
        return func(*args, **kwargs)

    def _takes(self, x: Tensor, weight: Tensor) -> bool:
        if torch.is_autocast_enabled(x.device.type):
            return False
        plain = type(x) is Tensor or type(x) is torch.nn.Parameter
        return plain and x.dim() >= 2 and x.is_contiguous() and weight.is_contiguous()

    def take(self) -> dict[int, Tensor]:
        """The gradients put aside so far, by ``id`` of the weight; forgets them."""
        found: dict[int, Tensor] = {}
        for weight, grad, x in self._products:
            product = grad.t().mm(x)
            before = found.get(id(weight))
            found[id(weight)] = product if before is None else before + product
        self._products.clear()
        return found

    @property
    def pending(self) -> set[int]:
        """``id`` of the weights with a gradient put aside."""
        return {id(weight) for weight, _, _ in self._products}


def _operands(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Linear(torch.autograd.Function):
    """``F.linear`` whose backward leaves out the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        products: list[tuple[Tensor, Tensor, Tensor]],
    ) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.weight, ctx.products = weight, products
        return F.linear(x, value, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, value = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        ctx.products.append((ctx.weight, rows, x.reshape(-1, x.shape[-1])))
        grad_x = rows.mm(value).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, rows if ctx.needs_input_grad[2] else None, None, None
