"""Normalisations kept as one operation: the elements that are normalised together stay together.

A dim they are taken over is cut only where the operation is written as sums and elementwise
operations, of which ``reduce_rule`` and ``elementwise_rule`` have the rules.
"""

import math

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_names, leading_names, rule_of


def layer_norm_rule(
    x: Shape, num_normalized: int = 1, *, num_weights: int = 2, num_stats: int = 2
) -> OpRule:
    """(x, *weights) to (normalised x, *statistics of every row).

    Args:
        num_normalized: how many of the last dims are normalised over.
        num_weights: 2 for a weight and a bias, 1 for RMS norm, 0 for none.
        num_stats: 2 for mean and reciprocal deviation, 1 for RMS norm, 0 where they are not given.

    >>> [(factor.name, factor.kind) for factor in layer_norm_rule((2, 8, 6)).factors]
    [('batch', 'parallel'), ('sequence', 'parallel'), ('channel', 'whole')]
    """
    sizes, rows, channels = _normalized(x, num_normalized)
    stats = " ".join([rows, *["_"] * num_normalized])
    return rule_of(
        sizes,
        [f"{rows} {channels}", *[channels] * num_weights],
        [f"{rows} {channels}", *[stats] * num_stats],
        whole=channels,
    )


def layer_norm_backward_rule(
    x: Shape, num_normalized: int = 1, *, num_weights: int = 2, num_stats: int = 2
) -> OpRule:
    """(grad, x, *statistics, *weights) to the gradients of (x, *weights).

    Rows that are cut leave addends of the weights' gradients.
    """
    sizes, rows, channels = _normalized(x, num_normalized)
    stats = " ".join([rows, *["_"] * num_normalized])
    along = f"{rows} {channels}"
    return rule_of(
        sizes,
        [along, along, *[stats] * num_stats, *[channels] * num_weights],
        [along, *[channels] * num_weights],
        linear=[(0,)],
        whole=channels,
    )


def group_norm_rule(x: Shape, num_groups: int, *, num_weights: int = 2) -> OpRule:
    """(x [batch, channel, ...], *weights [channel]) to (normalised x, mean, rstd [batch, group]).

    Ranks take whole groups of channels.
    """
    sizes, along, even = _grouped(x, num_groups)
    stats = ["batch group"] * 2
    return rule_of(sizes, [along, *["group"] * num_weights], [along, *stats], even=even)


def group_norm_backward_rule(
    x: Shape, num_groups: int, *, num_weights: int = 1, num_gradients: int = 2
) -> OpRule:
    """(grad, x, mean, rstd, *weights) to the gradients of x and of weight and bias.

    Args:
        num_weights: how many the backward reads.
        num_gradients: of weights [channel], that it makes.
    """
    sizes, along, even = _grouped(x, num_groups)
    return rule_of(
        sizes,
        [along, along, "batch group", "batch group", *["group"] * num_weights],
        [along, *["group"] * num_gradients],
        linear=[(0,)],
        even=even,
    )


def batch_norm_rule(
    x: Shape, *, num_per_channel: int = 4, num_stats: int = 2, training: bool = True
) -> OpRule:
    """(x [batch, channel, ...], *tensors [channel]) to (normalised x, *tensors [channel]).

    Channels are independent; where running statistics are used, so is everything else.

    Args:
        num_per_channel: weight, bias and running statistics read.
        num_stats: statistics and new running statistics made; 0 unless ``training``.
    """
    sizes, along = _batched(x)
    check(training or num_stats == 0, "num_stats", "0 out of training", num_stats)
    return rule_of(
        sizes,
        [along, *["channel"] * num_per_channel],
        [along, *["channel"] * num_stats],
        whole=" ".join(name for name in sizes if training and name != "channel"),
    )


def batch_norm_backward_rule(
    x: Shape, *, num_per_channel: int = 5, num_gradients: int = 2
) -> OpRule:
    """(grad, x, *tensors [channel]) to the gradients of x and of the weights [channel]."""
    sizes, along = _batched(x)
    return rule_of(
        sizes,
        [along, along, *["channel"] * num_per_channel],
        [along, *["channel"] * num_gradients],
        linear=[(0,)],
        whole=" ".join(name for name in sizes if name != "channel"),
    )


def _normalized(x: Shape, count: int) -> tuple[dict[str, int], str, str]:
    check(0 < count <= len(x), "num_normalized", f"1 to {len(x)}", count)
    rows = leading_names(len(x) - count)
    channels = ["channel"] if count == 1 else [f"channel{at}" for at in range(count)]
    return dict(zip([*rows, *channels], x, strict=True)), " ".join(rows), " ".join(channels)


def _grouped(x: Shape, num_groups: int) -> tuple[dict[str, int], str, str]:
    check(x[1] % num_groups == 0, "channels", f"a multiple of {num_groups} groups", x[1])
    along = " ".join(["batch group", *["_"] * (len(x) - 2)])
    empty = 0 if 0 in x else 1
    even = "" if num_groups == x[1] else "group"
    return {"batch": x[0] * empty, "group": num_groups * empty}, along, even


def _batched(x: Shape) -> tuple[dict[str, int], str]:
    names = ["batch", "channel", *dim_names(len(x))[2:]]
    check(len(x) >= 2 and math.prod(x) > 0, "x", "[batch, channel, ...] with elements", x)
    return dict(zip(names, x, strict=True)), " ".join(names)
