"""Narrow copies of wide parameters, made once an update and used by every slice of a step."""

from typing import Any

import torch
from torch import Tensor


class WorkingCopies:
    """``copy(parameter)``: the parameter in ``dtype``, differentiable, its gradient as wide as it.

    A parameter that has not been written since it was last asked for is not converted again. The
    copy says whose it is (``narrowed_from``), so that a pipeline can put its gradient aside.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._kept: dict[int, tuple[int, Tensor]] = {}

    def copy(self, parameter: Tensor) -> Tensor:
        """A tensor of the same values, rounded."""
        if parameter.dtype == self.dtype:
            return parameter
        version, kept = self._kept.get(id(parameter), (-1, None))
        if kept is None or version != parameter._version:
            kept = parameter.detach().to(self.dtype)
            self._kept[id(parameter)] = (parameter._version, kept)
        copy: Tensor = _Narrowed.apply(parameter, kept)  # type: ignore[assignment]
        copy.narrowed_from = parameter  # type: ignore[attr-defined]
        return copy


class _Narrowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, kept: Tensor) -> Tensor:
        ctx.dtype = parameter.dtype
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad.to(ctx.dtype), None
