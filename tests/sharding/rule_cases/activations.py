"""Normalisations and pools with their backwards."""

import math
from random import Random

import torch
from torch import Tensor

from blocks.sharding import rules
from tests.sharding.rule_cases.case import Case, case, floats, shape, size

aten = torch.ops.aten


@case("layer_norm_rule", "layer_norm_backward_rule")
def layer_norm(rng: Random, name: str) -> Case:
    rows, channels = shape(rng, 1, 2, 3), list(shape(rng, 1, 2))
    x, affine = floats(*rows, *channels), rng.random() < 0.7
    weights = [floats(*channels), floats(*channels).cos()] if affine else []
    options = {"num_weights": len(weights)}

    def forward(x: Tensor, *weights: Tensor) -> list[Tensor]:
        return aten.native_layer_norm(x, channels, *(weights or [None, None]), 1e-5)

    if name == "layer_norm_rule":
        rule = rules.layer_norm_rule(x.shape, len(channels), **options)
        return Case(rule, [x, *weights], forward)

    def backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *w: Tensor) -> list[Tensor]:
        wanted = [True, affine, affine]
        found = aten.native_layer_norm_backward(
            grad, x, channels, mean, rstd, *(w or [None, None]), wanted
        )
        return list(found[: 1 + len(w)])

    _, mean, rstd = forward(x, *weights)
    rule = rules.layer_norm_backward_rule(x.shape, len(channels), **options)
    return Case(rule, [x.cos(), x, mean, rstd, *weights], backward)


@case("layer_norm_rule rms", "layer_norm_backward_rule rms")
def rms_norm(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2), size(rng))
    weight = floats(x.shape[-1])
    rstd = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    options = {"num_weights": 1, "num_stats": 1}
    if name == "layer_norm_rule rms":
        rule = rules.layer_norm_rule(x.shape, **options)
        channels = [x.shape[-1]]
        return Case(rule, [x, weight], lambda x, w: aten._fused_rms_norm(x, channels, w, 1e-5))

    def backward(grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor) -> list[Tensor]:
        along, slope = x * rstd, grad * weight
        of_x = rstd * (slope - along * (slope * along).mean(-1, keepdim=True))
        return [of_x, (grad * along).sum(list(range(x.ndim - 1)))]

    rule = rules.layer_norm_backward_rule(x.shape, **options)
    return Case(rule, [x.cos(), x, rstd, weight], backward)


@case("group_norm_rule", "group_norm_backward_rule")
def group_norm(rng: Random, name: str) -> Case:
    groups = size(rng)
    x = floats(size(rng), groups * rng.choice([1, 2]), *shape(rng, 1, 2))
    per_group, places = x.shape[1] // groups, math.prod(x.shape[2:])

    def sizes(x: Tensor) -> tuple[int, int, int, int]:
        return x.shape[0], x.shape[1], places, x.shape[1] // per_group

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return aten.native_group_norm(x, weight, bias, *sizes(x), 1e-5)

    def backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> list[Tensor]:
        return aten.native_group_norm_backward(
            g, x, mean, rstd, weight, *sizes(x), [True, True, True]
        )

    weight, bias = floats(x.shape[1]), floats(x.shape[1]).cos()
    if name == "group_norm_rule":
        return Case(rules.group_norm_rule(x.shape, groups), [x, weight, bias], forward)
    _, mean, rstd = forward(x, weight, bias)
    rule = rules.group_norm_backward_rule(x.shape, groups)
    return Case(rule, [x.cos(), x, mean, rstd, weight], backward)


@case("batch_norm_rule", "batch_norm_rule fixed", "batch_norm_backward_rule")
def batch_norm(rng: Random, name: str) -> Case:
    x = floats(size(rng) + 1, size(rng), *shape(rng, 0, 1, 2))
    weight, bias, mean, var = (floats(k + 1, x.shape[1])[k] for k in range(4))
    var, training = var.abs() + 0.5, name != "batch_norm_rule fixed"

    def forward(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        found = aten._native_batch_norm_legit_functional(x, *tensors, training, 0.1, 1e-5)
        return list(found) if training else [found[0]]

    def backward(grad: Tensor, x: Tensor, *tensors: Tensor) -> list[Tensor]:
        wanted = [True, True, True]
        return aten.native_batch_norm_backward(grad, x, *tensors, True, 1e-5, wanted)

    if name != "batch_norm_backward_rule":
        num_stats = 4 if training else 0
        rule = rules.batch_norm_rule(x.shape, num_stats=num_stats, training=training)
        return Case(rule, [x, weight, bias, mean, var], forward)
    _, of_batch, rstd, _, _ = forward(x, weight, bias, mean, var)
    rule = rules.batch_norm_backward_rule(x.shape)
    return Case(rule, [x.cos(), x, weight, mean, var, of_batch, rstd], backward)


@case("pool_rule max", "pool_rule max backward", "pool_rule mean", "pool_rule mean backward")
@case("pool_rule upsample", "pool_rule upsample backward")
def pool(rng: Random, name: str) -> Case:
    x = floats(size(rng), size(rng), 4, 6)
    largest, where = aten.max_pool2d_with_indices(x, [2, 2])
    small, large = largest.shape, (*x.shape[:2], 8, 12)
    inputs, operation, local = {
        "max": ([x], lambda x: aten.max_pool2d_with_indices(x, [2, 2]), None),
        "max backward": (
            [largest.cos(), x, where],
            lambda g, x, at: aten.max_pool2d_with_indices_backward(
                g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, at), None),
        "mean": ([x], lambda x: aten._adaptive_avg_pool2d(x, [2, 3]), None),
        "mean backward": ([floats(*small), x], aten._adaptive_avg_pool2d_backward, None),
        "upsample": ([x], lambda x: aten.upsample_bilinear2d(x, [8, 12], False), None),
        "upsample backward": (
            [floats(*large)],
            lambda g: aten.upsample_bilinear2d_backward(g, [8, 12], x.shape, False),
            lambda share, g: aten.upsample_bilinear2d_backward(
                g, [8, 12], share.local_shapes[0], False)),
    }[name.removeprefix("pool_rule ")]  # fmt: skip
    made = operation(*inputs)
    outputs = [t.shape for t in ([made] if isinstance(made, Tensor) else made)]
    linear = [] if name == "pool_rule max" else [(0,)]
    rule = rules.pool_rule([t.shape for t in inputs], outputs, linear=linear)
    return Case(rule, inputs, operation, local)
