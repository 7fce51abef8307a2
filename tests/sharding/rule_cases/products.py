"""Matrix products, attention, convolutions, mixtures of experts, scans."""

import string
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce, repeat
from torch import Tensor

from blocks.sharding import rules
from blocks.sharding.rule_audit import RankShare
from tests.sharding.rule_cases.case import Case, case, floats, indices, shape, size

aten = torch.ops.aten
LAYOUTS: tuple[rules.WeightLayout, ...] = ("out in", "in out")


@case("matmul_rule")
def matmul(rng: Random, name: str) -> Case:
    row, column, inner = size(rng), size(rng), size(rng)
    batch = [size(rng) for _ in range(rng.choice([0, 1, 2]))]
    left = [1 if rng.random() < 0.2 else n for n in batch]
    right = [1 if n == m and rng.random() < 0.2 else n for n, m in zip(batch, left, strict=True)]
    right = right[rng.choice([0, len(right)]) :]  # or fewer dims
    a, b = floats(*left, row, inner), floats(*right, inner, column)
    return Case(rules.matmul_rule(a.shape, b.shape), [a, b], torch.matmul)


@case("linear_rule")
def linear(rng: Random, name: str) -> Case:
    x, weight, layout = *_linear(rng), rng.choice(LAYOUTS)
    bias = [floats(weight.shape[0])] if rng.random() < 0.5 else []
    given = weight if layout == "out in" else weight.T
    rule = rules.linear_rule(x.shape, given.shape, layout=layout, bias=bool(bias))

    def whole(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        return F.linear(x, weight if layout == "out in" else weight.T, bias)

    def local(share: RankShare, x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        return whole(x, weight, None if share.runs["in"].start else bias)

    return Case(rule, [x, given, *bias], whole, local)


@case("linear_input_gradient_rule", "linear_weight_gradient_rule")
def linear_gradients(rng: Random, name: str) -> Case:
    x, weight, layout = *_linear(rng), rng.choice(LAYOUTS)
    grad = floats(*x.shape[:-1], weight.shape[0])
    if name == "linear_input_gradient_rule":
        given = weight if layout == "out in" else weight.T
        rule = rules.linear_input_gradient_rule(grad.shape, given.shape, layout=layout)
        return Case(rule, [grad, given], lambda g, w: g @ (w if layout == "out in" else w.T))
    rule = rules.linear_weight_gradient_rule(grad.shape, x.shape, layout=layout)

    def whole(grad: Tensor, x: Tensor) -> Tensor:
        product = torch.einsum("...o,...i->oi", grad, x)
        return product if layout == "out in" else product.T

    return Case(rule, [grad, x], whole)


def _linear(rng: Random) -> tuple[Tensor, Tensor]:
    inner = size(rng)
    return floats(*shape(rng, 1, 2, 3), inner), floats(size(rng), inner)


@case("einsum_rule")
def einsum(rng: Random, name: str) -> Case:
    letters = string.ascii_lowercase[: rng.choice([2, 3, 4])]
    terms = ["".join(rng.sample(letters, rng.randint(1, len(letters)))) for _ in range(2)]
    terms += ["".join(rng.sample(letters, 1))] * rng.choice([0, 1])
    used = sorted(set("".join(terms)))
    result = "".join(rng.sample(used, rng.randint(0, len(used))))
    sizes = {letter: size(rng) for letter in letters}
    tensors = [floats(*(sizes[letter] for letter in term)) for term in terms]
    equation = f"{','.join(terms)}->{result}"
    rule = rules.einsum_rule(equation, [t.shape for t in tensors])
    return Case(rule, tensors, lambda *parts: torch.einsum(equation, *parts))


@case("attention_rule", "attention_backward_rule")
def attention(rng: Random, name: str) -> Case:
    """Grouped queries, values of another width, a mask or a causal one, lse given."""
    batch, kv_heads, group = size(rng), size(rng), rng.choice([1, 2, 3])
    queries, keys, width, value_width = size(rng), rng.choice([3, 4, 8]), 3, rng.choice([3, 2])
    heads = kv_heads * group
    q, k = floats(batch, heads, queries, width), floats(batch, kv_heads, keys, width)
    v = floats(batch, kv_heads, keys, value_width)
    mask, causal = None, rng.random() < 0.3
    if not causal and rng.random() < 0.5:
        full = (batch, heads, queries, keys)
        mask = floats(*(1 if rng.random() < 0.4 else n for n in full))
        mask = mask[0] if mask.shape[0] == 1 and rng.random() < 0.5 else mask
    masks = [] if mask is None else [mask]

    def for_heads_of(q: Tensor, t: Tensor) -> Tensor:
        shared = "batch head key dim -> batch (head group) key dim"
        return repeat(t, shared, group=q.shape[1] // t.shape[1])

    def scores(first: int, q: Tensor, k: Tensor, *masks: Tensor) -> Tensor:
        found = q @ for_heads_of(q, k).mT
        for mask in masks:
            found = found + mask
        at = torch.arange(first, first + q.shape[2])[:, None]
        return found.masked_fill(torch.arange(k.shape[2]) > at, -torch.inf) if causal else found

    def forward(first: int, q: Tensor, k: Tensor, v: Tensor, *masks: Tensor) -> list[Tensor]:
        logits = scores(first, q, k, *masks)
        lse = logits.logsumexp(-1)
        return [(logits - lse[..., None]).exp() @ for_heads_of(q, v), lse]

    def backward(
        first: int, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        *masks: Tensor
    ) -> list[Tensor]:  # fmt: skip
        share = (scores(first, q, k, *masks) - lse[..., None]).exp()
        values = for_heads_of(q, v)
        slope = share * (grad @ values.mT - (grad * out).sum(-1, keepdim=True))
        of_heads = [(slope.mT @ q), (share.mT @ grad)]
        gathered = "batch (head group) key dim -> batch head key dim"
        summed = [reduce(t, gathered, "sum", head=k.shape[1]) for t in of_heads]
        return [slope @ for_heads_of(q, k), *summed]

    shapes = (q.shape, k.shape, v.shape)
    mask_shape = None if mask is None else mask.shape
    if name == "attention_rule":
        rule = rules.attention_rule(*shapes, mask=mask_shape)
        whole, inputs = forward, [q, k, v, *masks]
    else:
        rule = rules.attention_backward_rule(*shapes, mask=mask_shape)
        grad = floats(*q.shape[:3], value_width)
        whole, inputs = backward, [grad, q, k, v, *forward(0, q, k, v, *masks), *masks]
    return Case(
        rule,
        inputs,
        lambda *t: whole(0, *t),
        lambda share, *t: whole(share.runs["query"].start, *t),
    )


@case("attention_rule of torch", "attention_backward_rule of torch")
def attention_of_torch(rng: Random, name: str) -> Case:
    """The operation that ``scaled_dot_product_attention`` is on a CPU."""
    batch, heads, queries, keys = size(rng), size(rng), size(rng), size(rng)
    q, k, v = (floats(batch, heads, n, 4) for n in (queries, keys, keys))
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    if name == "attention_rule of torch":
        return Case(rules.attention_rule(q.shape, k.shape), [q, k, v], flash)
    return Case(
        rules.attention_backward_rule(q.shape, k.shape),
        [floats(*q.shape), q, k, v, *flash(q, k, v)],
        lambda *t: aten._scaled_dot_product_flash_attention_for_cpu_backward(*t, 0.0, False),
    )


@case("conv_rule", "conv_input_gradient_rule", "conv_weight_gradient_rule")
def convolution(rng: Random, name: str) -> Case:
    """One and two dims, strides, dilation, padding, groups, depthwise, transposed."""
    spatial, transposed = rng.choice([1, 2]), rng.random() < 0.3
    groups = rng.choice([1, 1, 2, 4, 6])
    of_group = rng.choice([(1, 1), (1, 2), (3, 2)]) if groups > 1 else (size(rng), size(rng))
    places, taps = [rng.choice([4, 5]) for _ in range(spatial)], [3, 2][:spatial]
    x = floats(size(rng), groups * of_group[0], *places)
    first, second = of_group[::-1] if not transposed else of_group
    weight = floats(groups * first, second, *taps)
    stride, padding, dilation = rng.choice([1, 2]), rng.choice([0, 1]), 1
    settings = ([stride] * spatial, [padding] * spatial, [dilation] * spatial, transposed)
    settings = (*settings, [0] * spatial)
    output = aten.convolution(x, weight, None, *settings, groups)

    def on_rank(share: RankShare) -> int:
        return share.runs["group"].size if groups > 1 else 1

    shapes = (x.shape, weight.shape, output.shape)
    options = {"groups": groups, "transposed": transposed}
    if name == "conv_rule":
        return Case(
            rules.conv_rule(*shapes, **options),
            [x, weight],
            lambda x, w: aten.convolution(x, w, None, *settings, groups),
            lambda share, x, w: aten.convolution(x, w, None, *settings, on_rank(share)),
        )
    at = ["conv_input_gradient_rule", "conv_weight_gradient_rule"].index(name)
    grad = floats(*output.shape)

    def gradient(groups: int, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        wanted = [at == 0, at == 1, False]
        return aten.convolution_backward(grad, x, weight, None, *settings, groups, wanted)[at]

    def like(share: RankShare, t: Tensor) -> Tensor:
        return t.new_zeros(share.local_shapes[0])  # only its shape counts

    if at == 0:
        return Case(
            rules.conv_input_gradient_rule(*shapes, **options),
            [grad, weight],
            lambda g, w: gradient(groups, g, x, w),
            lambda share, g, w: gradient(on_rank(share), g, like(share, x), w),
        )
    return Case(
        rules.conv_weight_gradient_rule(*shapes, **options),
        [grad, x],
        lambda g, x: gradient(groups, g, x, weight),
        lambda share, g, x: gradient(on_rank(share), g, x, like(share, weight)),
    )


@case("moe_dispatch_rule", "moe_combine_rule")
def experts(rng: Random, name: str) -> Case:
    group, token, expert, slot, channel = size(rng), size(rng), size(rng), 2, size(rng)
    mask = floats(group, token, expert, slot)
    if name == "moe_dispatch_rule":
        x = floats(group, token, channel)
        rule = rules.moe_dispatch_rule(mask.shape, x.shape)
        return Case(rule, [mask, x], lambda m, x: torch.einsum("gsec,gsm->egcm", m, x))
    y = floats(expert, group, slot, channel)
    rule = rules.moe_combine_rule(mask.shape, y.shape)
    return Case(rule, [mask, y], lambda m, y: torch.einsum("gsec,egcm->gsm", m, y))


@case("grouped_matmul_rule")
def grouped_matmul(rng: Random, name: str) -> Case:
    tokens, num_experts = size(rng), size(rng)
    x, weight = floats(tokens, size(rng)), floats(num_experts, 1, size(rng))
    weight = weight.expand(-1, x.shape[1], -1) * floats(num_experts, x.shape[1], 1)
    ends = indices(tokens + 1, num_experts).sort().values
    ends[-1] = tokens

    def local(share: RankShare, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        result = x.new_zeros(len(x), weight.shape[2])
        for at, expert in enumerate(range(*share.runs["expert"])):
            start = 0 if expert == 0 else int(ends[expert - 1])
            result[start : ends[expert]] = x[start : ends[expert]] @ weight[at]
        return result

    def whole(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        expert = torch.searchsorted(ends, torch.arange(len(x)), right=True)
        return torch.einsum("ti,tio->to", x, weight[expert])

    return Case(rules.grouped_matmul_rule(x.shape, weight.shape), [x, weight, ends], whole, local)


@case("selective_scan_rule")
def selective_scan(rng: Random, name: str) -> Case:
    batch, channel, time, state = size(rng), size(rng), 4, size(rng)
    x, dt = floats(batch, channel, time), floats(batch, channel, time).sigmoid()
    b, c = floats(batch, state, time), floats(batch, state, time).cos()

    def whole(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        held, found = x.new_zeros(*x.shape[:2], a.shape[1]), []
        for t in range(time):
            step = dt[..., t, None]
            held = held * (step * a).exp() + step * x[..., t, None] * b[:, None, :, t]
            found.append((held * c[:, None, :, t]).sum(-1))
        return torch.stack(found, -1)

    inputs = [x, dt, -floats(channel, state).abs(), b, c]
    return Case(rules.selective_scan_rule(x.shape, state), inputs, whole)
