"""``flop_counter``: the floating point operations a thread does, operation by operation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
Shape = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """Torch's counter, taught the CPU's attention and the gradients of grouped convolutions."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradient,
            aten.convolution_backward: _convolution_gradients,
        },
    )


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_gradient(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])


def _convolution_gradients(
    grad: Shape,
    x: Shape,
    weight: Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """As many as the convolution, for each of the two that is wanted."""
    places = x[2:] if transposed else grad[2:]
    once = 2 * grad[0] * math.prod(weight) * math.prod(places)
    return once * (bool(wanted[0]) + bool(wanted[1]))
