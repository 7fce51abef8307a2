"""Convolutions of any number of spatial dims, their transposes and gradients; pools.

Activations are [batch, channel, ...]. Batch, channels and groups can be cut; places cannot.
"""

import math
from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, rule_of


def conv_rule(
    x: Shape, weight: Shape, output: Shape, *, groups: int = 1, transposed: bool = False
) -> OpRule:
    """(x, weight) to the output; a bias is added after it, by ``elementwise_rule``.

    Ranks take runs of the batch, of output channels, of input channels (then the outputs are
    addends), or whole groups; with one channel to a group these are the channels of a depthwise
    convolution. Locally, the groups are those that the rank has.

    Args:
        weight: [out, in / groups, ...], of a transposed one [in, out / groups, ...].

    >>> conv_rule((8, 3, 32, 32), (16, 3, 3, 3), (8, 16, 30, 30)).factors
    (Factor(batch=8 parallel), Factor(out=16 parallel), Factor(in=3 sum))
    """
    rule = _Convolution(x, weight, output, groups, transposed)
    return rule(["x", "weight"], "output")


def conv_input_gradient_rule(
    x: Shape, weight: Shape, output: Shape, *, groups: int = 1, transposed: bool = False
) -> OpRule:
    """(grad of the output, weight) to the gradient of x; the shapes are those of the forward."""
    rule = _Convolution(x, weight, output, groups, transposed)
    return rule(["output", "weight"], "x")


def conv_weight_gradient_rule(
    x: Shape, weight: Shape, output: Shape, *, groups: int = 1, transposed: bool = False
) -> OpRule:
    """(grad of the output, x) to the gradient of the weight; shapes as in the forward."""
    rule = _Convolution(x, weight, output, groups, transposed)
    return rule(["output", "x"], "weight")


def pool_rule(
    inputs: Sequence[Shape], outputs: Sequence[Shape], *, linear: Sequence[Sequence[int]] = ()
) -> OpRule:
    """Pools, upsampling and their backwards: every channel of every sample for itself.

    Args:
        inputs, outputs: [batch, channel, ...] all.
        linear: ``[(0,)]`` for averages, interpolation, and backwards with the gradient first.

    >>> pool_rule([(8, 16, 32, 32)], [(8, 16, 16, 16)] * 2).outputs
    ((0, 1, None, None), (0, 1, None, None))
    """
    batch, channels = inputs[0][:2]
    for shape in (*inputs, *outputs):
        check(tuple(shape[:2]) == (batch, channels), "shape", [batch, channels, "..."], shape)

    def along(shape: Shape) -> str:
        return " ".join(["batch channel", *["_"] * (len(shape) - 2)])

    sizes = {"batch": batch, "channel": channels}
    return rule_of(sizes, list(map(along, inputs)), list(map(along, outputs)), linear=linear)


class _Convolution:
    """What is along the dims of x, weight and output of a convolution; called, a rule of two."""

    def __init__(
        self, x: Shape, weight: Shape, output: Shape, groups: int, transposed: bool
    ) -> None:
        channels = (x[1], output[1])
        of_group = (channels[0] // groups, channels[1] // groups)
        expected = (x[1], of_group[1]) if transposed else (output[1], of_group[0])
        check(tuple(weight[:2]) == expected, "weight", [*expected, "..."], weight)
        self.taps = math.prod(weight[2:])
        self.places = math.prod((x if transposed else output)[2:])
        self.of_group = (1, 1) if groups == 1 else of_group
        places = ["_"] * (len(x) - 2)
        if groups == 1:
            self.sizes = {"batch": x[0], "out": output[1], "in": x[1]}
            named = ("in", "out", "in out" if transposed else "out in")
            self.even = ""
        else:
            self.sizes = {"batch": x[0], "group": groups}
            named = ("group", "group", "group _")
            self.even = "" if of_group == (1, 1) else "group"
        self.along = {
            "x": " ".join(["batch", named[0], *places]),
            "output": " ".join(["batch", named[1], *places]),
            "weight": " ".join([named[2], *places]),
        }

    def inner(self, output: str) -> tuple[int, int, int]:
        """A point as a product: its rows are places, its depth taps, and what is in a group of
        channels goes the way of the channels. Places are those of the smaller side, as many as the
        kernel is put at."""
        given, made = self.of_group
        if output == "weight":
            return made, given * self.taps, self.places
        made, given = (made, given) if output == "output" else (given, made)
        return self.places, made, given * self.taps

    def __call__(self, inputs: Sequence[str], output: str) -> OpRule:
        inner = self.inner(output)
        return rule_of(
            self.sizes,
            [self.along[name] for name in inputs],
            [self.along[output]],
            linear=[(0,), (1,)],
            flops_per_point=2 * math.prod(inner),
            inner=inner,
            even=self.even,
        )
