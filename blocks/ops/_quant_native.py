"""The C++ side of quantised weights: products of few rows, and rows of a weight as numbers."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blocks.ops._library import functions, native_ready
from blocks.ops.quant import QuantizedWeight

FORMATS = {"int8": 0, "fp8": 1, "int4": 2}
TILE_BYTES = 1 << 20
"""How much of a weight is decoded before it is multiplied: it stays in a cache."""


def ready(weight: QuantizedWeight, dtype: torch.dtype) -> bool:
    """Whether the C++ functions take this weight, and numbers of this dtype."""
    return weight.values.is_cpu and dtype in (torch.bfloat16, torch.float32) and native_ready()


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """``quant_linear`` of rows as they are, [num_rows, in_features] to [num_rows, outputs]."""
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    pointers = (x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr())
    parts, kept = _parts(weight)
    _functions("quant_linear", "pppn")[x.dtype](*parts, *pointers, x.shape[0])
    del kept
    return y


def dequantize(weight: QuantizedWeight, dtype: torch.dtype, begin: int, end: int) -> Tensor:
    """Rows ``begin`` to ``end`` of ``weight.dequantize(dtype)``."""
    rows = torch.empty((end - begin, weight.shape[1]), dtype=dtype)
    parts, kept = _parts(weight)
    _functions("dequantize", "nnp")[dtype](*parts, begin, end, rows.data_ptr())
    del kept
    return rows


def _parts(weight: QuantizedWeight) -> tuple[tuple[Any, ...], tuple[Tensor | None, ...]]:
    """The weight as C++ takes it, and the tensors that own the memory."""
    tensors = tuple(
        t if t is None or t.is_contiguous() else t.contiguous()
        for t in (weight.values, weight.scales, weight.zeros)
    )
    pointers = (None if t is None else t.data_ptr() for t in tensors)
    sizes = (*weight.shape, *weight.group, weight.scales.shape[1])
    return (*pointers, *sizes, FORMATS[weight.format]), tensors


@functools.cache
def _functions(name: str, more: str) -> dict[torch.dtype, Callable[..., None]]:
    return functions("quant_linear", name, "pppnnnnni" + more)
