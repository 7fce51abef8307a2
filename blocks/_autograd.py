"""Differentiable operations, in the three ways they are called.

A call without gradients runs a plain function. An eager call with gradients runs the same function
inside a ``torch.autograd.Function``. Under ``torch.compile`` the function is an operator of its
own, ``blocks::<name>``, that goes into the graph whole. The dispatcher is paid only where it is
needed: an operator costs about 9 microseconds without gradients and 19 with them, an autograd
function 4, the plain call nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def must_trace(*tensors: Tensor | None) -> bool:
    """True when a gradient may be asked for, or torch.compile is tracing the call."""
    if torch.compiler.is_compiling():
        return True
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


class Operation:
    """A function with a hand-written gradient; calling it records what the gradient needs.

    Registers ``blocks::<name>`` and ``blocks::<name>_backward``. The annotations of ``run`` and
    ``backward`` become their schemas: tensors, optional tensors and plain numbers or strings in; a
    tensor or a tuple of tensors out, none of which may be an input or share its memory. Where
    nothing is traced (``must_trace``), call ``run`` and save the detour.

    Args:
        name: of the operator.
        run: computes the output.
        fake: output of ``run`` without contents: ``torch.empty`` of shape, dtype and device.
        save: ``save(ctx, inputs, output)`` keeps tensors (``ctx.save_for_backward``) and options.
        backward: computes gradients from what was saved.
        fake_backward: output of ``backward`` without contents.
        gradients: ``gradients(ctx, backward, *output_gradients)`` calls ``backward`` and returns
            a gradient or None for each input of ``run``. The gradient of an unused output is None.
    """

    def __init__(
        self,
        name: str,
        *,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[[Any, tuple[Any, ...], Any], None],
        backward: Callable[..., Any],
        fake_backward: Callable[..., Any],
        gradients: Callable[..., tuple[Any, ...]],
    ) -> None:
        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            save(ctx, inputs, output)

        class _Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = run(*inputs)
                keep(ctx, inputs, output)
                return output

            @staticmethod
            @once_differentiable
            def backward(ctx: Any, *wanted: Tensor | None) -> Any:
                return gradients(ctx, backward, *wanted)

        def traced_gradients(ctx: Any, *wanted: Tensor | None) -> Any:
            return gradients(ctx, operator_backward, *wanted)

        operator_backward = torch.library.custom_op(
            f"blocks::{name}_backward", backward, mutates_args=()
        )
        operator_backward.register_fake(fake_backward)
        self.operator = torch.library.custom_op(f"blocks::{name}", run, mutates_args=())
        self.operator.register_fake(fake)
        self.operator.register_autograd(traced_gradients, setup_context=keep)
        self._eager = _Eager

    def __call__(self, *inputs: Any) -> Any:
        """The result of ``run``, with gradients."""
        if torch.compiler.is_compiling():
            return self.operator(*inputs)
        return self._eager.apply(*inputs)
