"""Elementwise operations, reductions, views, slices and joins, sorts and scans."""

import math
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.sharding import rules
from tests.sharding.rule_cases.case import Case, case, floats, shape, size

aten = torch.ops.aten


@case(*(f"elementwise_rule {of}" for of in (
    "add", "sub", "mul", "div", "maximum", "scale", "gelu", "where", "gelu_backward",
    "threshold_backward", "dropout_backward", "two outputs",
)))  # fmt: skip
def elementwise(rng: Random, name: str) -> Case:
    full = shape(rng, 0, 1, 2, 3)
    x = floats(*full)
    other = floats(*(1 if rng.random() < 0.3 else n for n in full[rng.choice([0, len(full)]) :]))
    condition = floats(*full) > 0
    inputs, linear, operation = {
        "add": ([x, other], [(0, 1)], torch.add),
        "sub": ([x, other], [(0, 1)], torch.sub),
        "mul": ([x, other], [(0,), (1,)], torch.mul),
        "div": ([x, other], [(0,)], torch.div),
        "maximum": ([x, other], [], torch.maximum),
        "scale": ([x], [(0,)], lambda x: -2.5 * x),
        "gelu": ([x], [], F.gelu),
        "where": ([condition, x, other], [(1, 2)], torch.where),
        "gelu_backward": ([x, x.cos()], [(0,)], aten.gelu_backward),
        "threshold_backward": (
            [x, x.cos()], [(0,)], lambda g, y: aten.threshold_backward(g, y, 0.0)),
        "dropout_backward": (
            [x, condition], [(0,)], lambda g, m: aten.native_dropout_backward(g, m, 2.0)),
        "two outputs": ([x], [], lambda x: [x.sin(), x > 0]),
    }[name.partition(" ")[2]]  # fmt: skip
    shapes, count = [t.shape for t in inputs], 2 if name.endswith("two outputs") else 1
    rule = rules.elementwise_rule(shapes, linear=linear, num_outputs=count)
    return Case(rule, inputs, operation)


@case("accumulate_rule")
def accumulate(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 0, 1, 2))
    return Case(rules.accumulate_rule(x.shape), [x], torch.clone)


@case("update_rule")
def update(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 0, 1, 2))
    whole = rng.random() < 0.5

    def step(x: Tensor, grad: Tensor) -> Tensor:
        return x - 0.1 * grad / ((grad.square().mean() if whole else grad.square()).sqrt() + 1e-8)

    return Case(rules.update_rule(x.shape, whole=whole), [x, x.cos()], step)


@case("full_rule", "input_rule", "parameter_rule")
def full(rng: Random, name: str) -> Case:
    whole = shape(rng, 0, 1, 2, 3)
    return Case(
        getattr(rules, name)(whole),
        [],
        lambda: torch.full(whole, 1.5),
        lambda share: torch.full(share.local_shapes[0], 1.5),
    )


@case("output_rule")
def output(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 0, 1, 2))
    return Case(rules.output_rule(x.shape), [x], lambda x: [])


@case("arange_rule")
def arange(rng: Random, name: str) -> Case:
    count = size(rng)
    return Case(rules.arange_rule(count), [], lambda: torch.arange(count))


@case(*(f"reduce_rule {of}" for of in ("sum", "mean", "amax", "any", "var", "norm")))
def reduction(rng: Random, name: str) -> Case:
    x, keepdim = floats(*shape(rng, 1, 2, 3)), rng.random() < 0.5
    dims = sorted(rng.sample(range(x.ndim), rng.randint(1, x.ndim)))
    given = [dim - x.ndim if rng.random() < 0.5 else dim for dim in dims]
    count = math.prod(x.shape[dim] for dim in dims)
    kind, whole, local = {
        "sum": ("sum", lambda x: x.sum(dims, keepdim), None),
        "mean": ("sum", lambda x: x.mean(dims, keepdim), lambda _, x: x.sum(dims, keepdim) / count),
        "amax": ("max", lambda x: x.amax(dims, keepdim), None),
        "any": ("max", lambda x: (x > 1).long().amax(dims, keepdim), None),
        "var": ("whole", lambda x: x.var(dims, keepdim=keepdim, correction=0), None),
        "norm": ("whole", lambda x: x.square().sum(dims, keepdim).sqrt(), None),
    }[name.partition(" ")[2]]
    rule = rules.reduce_rule(x.shape, given, keepdim=keepdim, kind=kind, itemsize=8)
    return Case(rule, [x], whole, local)


@case("reduce_rule to a number")
def reduction_to_a_number(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 0, 1, 2))
    return Case(rules.reduce_rule(x.shape), [x], torch.sum)


@case("view_rule")
def view(rng: Random, name: str) -> Case:
    """The same prime factors in other dims, or dims merged, split, dropped and added."""
    primes = [rng.choice([1, 2, 2, 3, 5]) for _ in range(5)]
    old, new = _dims(rng, primes), _dims(rng, primes)
    if rng.random() < 0.5:
        old = list(shape(rng, 2, 3))
        new = rng.choice([[old[0] * old[1], *old[2:]], [1, *old], [old[0], math.prod(old[1:])]])
        old, new = (new, old) if rng.random() < 0.5 else (old, new)
    x = floats(*old)
    return Case(
        rules.view_rule(old, new),
        [x],
        lambda x: x.reshape(new),
        lambda share, x: x.reshape(share.local_shapes[0]),
    )


def _dims(rng: Random, primes: list[int]) -> list[int]:
    dims = [1]
    for prime in primes:
        if rng.random() < 0.5:
            dims.append(1)
        dims[-1] *= prime
    return dims


@case("permute_rule")
def permute(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2, 3))
    order = rng.sample(range(x.ndim), x.ndim)
    return Case(rules.permute_rule(x.shape, order), [x], lambda x: x.permute(order))


@case("expand_rule")
def expand(rng: Random, name: str) -> Case:
    new = shape(rng, 1, 2, 3)
    old = [1 if rng.random() < 0.4 else n for n in new[rng.randint(0, len(new)) :]]
    return Case(
        rules.expand_rule(old, new),
        [floats(*old)],
        lambda x: x.expand(new),
        lambda share, x: x.expand(share.local_shapes[0]),
    )


@case("along_dim_rule", "slice_rule", "slice_rule roll", "slice_rule flip", "slice_rule repeat")
@case("pad_rule", "pad_rule ones", "split_rule", "cumsum_rule", "sort_rule", "sort_rule topk")
@case("softmax_rule", "softmax_backward_rule", "softmax_backward_rule log", "cat_rule")
@case("slice_scatter_rule")
def along_a_dim(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2, 3))
    dim = rng.randrange(-x.ndim, x.ndim)
    count, at, whole = x.shape[dim], dim % x.ndim, x.shape
    other = x.narrow(dim, 0, rng.randint(0, count)).cos()
    part = rng.randint(1, count)
    ends = [0, 0] * (x.ndim - 1 - at) + [2, 1]
    halves, both = [count - count // 2, count // 2], [x, x.softmax(dim)]
    backward = aten._softmax_backward_data, aten._log_softmax_backward_data
    return Case(*{
        "along_dim_rule": (
            rules.along_dim_rule(whole, [dim]), [x], lambda x: x.logcumsumexp(dim)),
        "slice_rule": (
            rules.slice_rule(whole, dim), [x], lambda x: x.narrow(dim, count - part, part)),
        "slice_rule roll": (rules.slice_rule(whole, dim), [x], lambda x: x.roll(1, dim)),
        "slice_rule flip": (rules.slice_rule(whole, dim), [x], lambda x: x.flip(dim)),
        "slice_rule repeat": (
            rules.slice_rule(whole, dim), [x], lambda x: x.repeat_interleave(2, dim)),
        "pad_rule": (rules.pad_rule(whole, [dim]), [x], lambda x: F.pad(x, ends)),
        "pad_rule ones": (
            rules.pad_rule(whole, [dim], zeros=False), [x], lambda x: F.pad(x, ends, value=1.0)),
        "split_rule": (rules.split_rule(whole, dim, 2), [x], lambda x: x.split(halves, dim)),
        "cumsum_rule": (rules.cumsum_rule(whole, dim), [x], lambda x: x.cumsum(dim)),
        "sort_rule": (rules.sort_rule(whole, dim), [x], lambda x: x.sort(dim)),
        "sort_rule topk": (rules.sort_rule(whole, dim), [x], lambda x: x.topk(part, dim)),
        "softmax_rule": (rules.softmax_rule(whole, dim), [x], lambda x: x.log_softmax(dim)),
        "softmax_backward_rule": (
            rules.softmax_backward_rule(whole, dim), both,
            lambda g, y: backward[0](g, y, dim, y.dtype)),
        "softmax_backward_rule log": (
            rules.softmax_backward_rule(whole, dim), both,
            lambda g, y: backward[1](g, y, dim, y.dtype)),
        "cat_rule": (
            rules.cat_rule([whole, other.shape], dim), [x, other],
            lambda *t: torch.cat(t, dim)),
        "slice_scatter_rule": (
            rules.slice_scatter_rule(whole, dim), [x, other],
            lambda x, y: x.slice_scatter(y, dim, count - y.shape[dim])),
    }[name])  # fmt: skip


@case("select_rule", "select_backward_rule", "select_scatter_rule", "unbind_rule", "stack_rule")
def entries_of_a_dim(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2, 3))
    dim = rng.randrange(-x.ndim, x.ndim)
    at, entry = rng.randrange(x.shape[dim]), x.select(dim, 0).cos()
    new_dim = rng.randrange(-x.ndim - 1, x.ndim + 1)
    return Case(*{
        "select_rule": (rules.select_rule(x.shape, dim), [x], lambda x: x.select(dim, at)),
        "select_backward_rule": (
            rules.select_backward_rule(x.shape, dim), [entry],
            lambda g: aten.select_backward(g, x.shape, dim, at),
            lambda share, g: aten.select_backward(g, share.local_shapes[0], dim, at)),
        "select_scatter_rule": (
            rules.select_scatter_rule(x.shape, dim), [x, entry],
            lambda x, y: x.select_scatter(y, dim, at)),
        "unbind_rule": (rules.unbind_rule(x.shape, dim), [x], lambda x: x.unbind(dim)),
        "stack_rule": (
            rules.stack_rule([x.shape] * 3, new_dim), [x, x.sin(), x.cos()],
            lambda *t: torch.stack(t, new_dim)),
    }[name])  # fmt: skip
