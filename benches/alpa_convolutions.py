"""FLOPs of a step of a Wide-ResNet, as published rates count them.

Reference: XLA's cost analysis of a convolution, by which Alpa's code counts: a tap of the kernel
that falls on padding is no work.
"""

from collections.abc import Iterator
from typing import NamedTuple

from benches.alpa_paper import Model
from recipes.plan.families.wide_resnet import DEPTHS


class Convolution(NamedTuple):
    """Channels in and out, width of the square kernel, stride, and width of the square result."""

    given: int
    made: int
    kernel: int
    stride: int
    width: int


def convolutions(model: Model) -> Iterator[Convolution]:
    """Of one image's way through the model, the head's product behind them."""
    channels, width = model.hidden, 56
    yield Convolution(3, channels, 7, 2, 2 * width)
    for group, depth in enumerate(DEPTHS[model.num_layers]):
        base = model.hidden * 2**group
        for block in range(depth):
            stride = 2 if group and not block else 1
            before, width = width, width // stride
            inner, out = base * model.width_factor, 4 * base
            yield Convolution(channels, base, 1, 1, before)
            yield Convolution(base, inner, 3, stride, width)
            yield Convolution(inner, out, 1, 1, width)
            if channels != out or stride != 1:
                yield Convolution(channels, out, 1, stride, width)
            channels = out
    yield Convolution(channels, 1024, 1, 1, 1)


def taps(conv: Convolution) -> int:
    """Pairs of a place of the result and a tap of the kernel that meets the image, along one dim.

    Padded on both sides alike where the stride is 1, else by one less in front: as many places as
    the image has, over the stride.

    >>> taps(Convolution(1, 1, 3, 1, 56)), taps(Convolution(1, 1, 3, 2, 28))
    (166, 83)
    """
    size = conv.width * conv.stride
    if conv.kernel == 7:
        front = 3
    else:
        front = max(0, conv.kernel - conv.stride) // 2
    starts = (place * conv.stride - front for place in range(conv.width))
    return sum(min(start + conv.kernel, size) - max(start, 0) for start in starts)


def convolution_flops(model: Model, repeats: bool = False) -> int:
    """Of one image's step; nothing wants the gradient of the image.

    Args:
        repeats: the forward pass is done again.

    >>> from benches.alpa_paper import models
    >>> f"{convolution_flops(models('wide_resnet')[0]) * 1536:.3e}"
    '3.683e+14'
    """
    forward = [2 * conv.given * conv.made * taps(conv) ** 2 for conv in convolutions(model)]
    return (3 + repeats) * sum(forward) - forward[0]
