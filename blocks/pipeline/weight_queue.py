"""``WeightQueue``: weight gradients of linear layers, put aside in the backward."""

from collections.abc import Callable, Container
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore


class _Product(NamedTuple):
    """A weight gradient still to be made: ``gradient.T @ x``, for ``weight``."""

    weight: Tensor
    gradient: Tensor
    x: Tensor


class WeightQueue(TorchFunctionMode):
    """While active, every ``F.linear`` by one of ``weights`` puts its weight gradient aside.

    The backward of such a call gives the gradients of input and bias and queues the operands of
    the weight's product; ``take`` makes the products. They are the very calls autograd would have
    made, so the bits are the same. A weight may be a parameter, also under autocast, or a copy of
    one in another dtype that names it in its attribute ``narrowed_from``. Calls autograd would
    treat otherwise (other weights, strided inputs) or makes twice (``torch.utils.checkpoint``) are
    left to it, as are compiled regions and all other operations: their weight gradients come with
    the backward.
    """

    def __init__(self, weights: Container[int]) -> None:
        """
        Args:
            weights: ``id`` of every parameter whose gradient may be put aside.
        """
        super().__init__()
        self._weights = weights
        self._products: list[_Product] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)  # queuing would break its graph at every layer
        if func is F.linear and torch.is_grad_enabled():
            x, weight, bias = _operands(*args, **kwargs)
            owner = getattr(weight, "narrowed_from", weight)
            plain = _plain(x) and weight.is_contiguous() and not _checkpointed()
            if plain and id(owner) in self._weights:
                x, value, bias = _autocast(x, weight.detach(), bias)
                return _Linear.apply(x, value, bias, owner, self._products)
        return func(*args, **kwargs)

    def take(self) -> dict[int, Tensor]:
        """The gradients put aside so far, by ``id`` of the parameter; forgets them."""
        found: dict[int, Tensor] = {}
        for weight, gradient, x in self._products:
            product = gradient.t().mm(x).to(weight.dtype)
            before = found.get(id(weight))
            found[id(weight)] = product if before is None else before + product
        self._products.clear()
        return found

    @property
    def pending(self) -> set[int]:
        """``id`` of the parameters with a gradient put aside."""
        return {id(product.weight) for product in self._products}


def _operands(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _plain(x: Tensor) -> bool:
    """Whether autograd's weight product for input ``x`` is ``gradient.T @ x`` over its rows."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.dim() >= 2 and x.is_contiguous()


def _checkpointed() -> bool:
    """Whether ``torch.utils.checkpoint`` records what is saved: it fills it in again by a plain
    forward, without the queue, and would not notice that something else was saved."""
    hooks = _top_hooks(False)
    return hooks is not None and "_checkpoint_hook" in hooks[0].__qualname__


def _autocast(
    x: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands as ``F.linear`` would take them under autocast, where that is on."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x, value, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    return cast(x), cast(value), None if bias is None else cast(bias)


class _Linear(torch.autograd.Function):
    """``F.linear`` whose backward leaves out the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        products: list[_Product],
    ) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.weight, ctx.products = weight, products
        return F.linear(x, value, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, value = ctx.saved_tensors
        rows = gradient.detach().reshape(-1, gradient.shape[-1])
        ctx.products.append(_Product(ctx.weight, rows, x.detach().reshape(-1, x.shape[-1])))
        grad_x = rows.mm(value).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, rows if ctx.needs_input_grad[2] else None, None, None
