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
    """A weight gradient still to be made: ``gradient.T @ x``, for ``weight``.

    copy: stands for what was multiplied by, the weight or a copy of it: gradients of one copy are
        added in its dtype.
    """

    weight: Tensor
    copy: object
    gradient: Tensor
    x: Tensor


class WeightQueue(TorchFunctionMode):
    """While active, every ``F.linear`` by one of ``weights`` puts its weight gradient aside.

    The backward of such a call gives the gradients of input and bias and queues the operands of
    the weight's product; ``take`` makes the products. They are the very calls autograd would have
    made, so the bits are the same. A weight may be a parameter, also under autocast, or a copy of
    one in another dtype that names it in its attribute ``narrowed_from``. Of a weight used several
    times, gradients are added in the order of the backward, those of one copy before they are
    widened; where only some uses are put aside, these come last. Calls autograd would treat
    otherwise (other weights, strided inputs) or makes twice (``torch.utils.checkpoint``) are left
    to it, as are compiled regions and all other operations: their weight gradients come with the
    backward.
    """

    def __init__(self, weights: Container[int]) -> None:
        """
        Args:
            weights: ``id`` of every parameter whose gradient may be put aside.
        """
        super().__init__()
        self._weights = weights
        self._products: list[_Product] = []
        self._casts: dict[int, tuple[Tensor, object]] = {}
        """Of weights and biases, by ``id``, as autocast keeps them, with what stands for each."""

    def __exit__(self, *error: Any) -> None:
        self._casts.clear()
        super().__exit__(*error)

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
                value, copy = self._cast(weight)
                bias = None if bias is None else self._cast(bias)[0]
                use = owner, copy, self._products
                return _Linear.apply(self._cast(x)[0], value.detach(), bias, *use)
        return func(*args, **kwargs)

    def take(self) -> dict[int, Tensor]:
        """The gradients put aside so far, by ``id`` of the parameter; forgets them."""
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        for weight, copy, gradient, x in self._products:
            product = gradient.t().mm(x)
            # The turn of a copy comes with the last of its gradients.
            before = copies.pop(id(copy), None)
            copies[id(copy)] = weight, product if before is None else before[1] + product
        found: dict[int, Tensor] = {}
        for weight, total in copies.values():
            total = total.to(weight.dtype)
            before = found.get(id(weight))
            found[id(weight)] = total if before is None else before + total
        self._products.clear()  # not before: what stands for a copy must outlive the others
        return found

    def _cast(self, t: Tensor) -> tuple[Tensor, object]:
        """``t`` as ``F.linear`` would take it under autocast, and what stands for it."""
        device = t.device.type
        dtype = torch.get_autocast_dtype(device)
        if not torch.is_autocast_enabled(device) or t.dtype in (dtype, torch.float64):
            return t, t
        if not (torch.is_autocast_cache_enabled() and t.is_leaf and t.requires_grad):
            return t.to(dtype), object()
        if id(t) not in self._casts:
            self._casts[id(t)] = t.to(dtype), object()
        return self._casts[id(t)]

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


class _Linear(torch.autograd.Function):
    """``F.linear`` whose backward leaves out the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        copy: object,
        products: list[_Product],
    ) -> Tensor:
        ctx.save_for_backward(x, value)
        ctx.weight, ctx.copy, ctx.products = weight, copy, products
        return F.linear(x, value, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, value = ctx.saved_tensors
        rows = gradient.detach().reshape(-1, gradient.shape[-1])
        x = x.detach().reshape(-1, x.shape[-1])
        ctx.products.append(_Product(ctx.weight, ctx.copy, rows, x))
        grad_x = rows.mm(value).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return grad_x, None, rows if ctx.needs_input_grad[2] else None, None, None, None
