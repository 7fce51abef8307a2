"""Gradients of ``prefill``: every implementation, every setting, through output and LSE."""

import functools
import importlib
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from einops import rearrange, repeat
from hypothesis import example, given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from blocks import attention
from blocks.attention import AttentionOutput, prefill_backward_work, prefill_work
from tests.attention.paged_case import running_sums
from tests.numerics import assert_close, assert_like_torch

prefill: Any = attention.prefill  # called with unpacked lists
reference: Any = importlib.import_module("blocks.attention.reference")
IMPLS = ["torch", "native", "triton"]
SETTINGS = [
    {},
    {"causal": False},
    {"window": 1},
    {"window": 7},
    {"softcap": 3.0},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 20, "softcap": 5.0, "sinks": True, "alibi_slopes": True, "scale": 0.2},
    {"causal": False, "softcap": 5.0, "sinks": True, "alibi_slopes": True},
]
NAMES = ("output", "lse", "dq", "dk", "dv", "dsinks or dslopes", "dslopes")


def inputs(query_lens, key_lens, heads, head_dim=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(sum(query_lens), heads[0]), *[(sum(key_lens), heads[1])] * 2]
    tensors = [torch.randn(*size, head_dim, generator=generator).to(dtype) for size in sizes]
    return tensors, (running_sums(query_lens), running_sums(key_lens))


def per_head(options, num_heads):
    values = torch.linspace(-0.5, 1.0, num_heads)
    return {k: values.clone() if v is True and k != "causal" else v for k, v in options.items()}


def differentiate(function, tensors, bounds, options, dtype=None):
    """Output, LSE and every gradient of a loss that depends on both."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    named = {k: v.clone().requires_grad_() for k, v in options.items() if torch.is_tensor(v)}
    state = function(*leaves, *bounds, return_lse=True, **{**options, **named})
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(state.output.shape, generator=generator).to(state.output.dtype)
    seen = torch.where(state.lse == -torch.inf, 0.0, state.lse)
    loss = (state.output * weights).sum() + seen.square().sum() / 4
    return *state, *torch.autograd.grad(
        loss, [*leaves, *named.values()], allow_unused=True, materialize_grads=True
    )


def check(impl, query_lens, key_lens, heads, options, head_dim=16, seed=0):
    tensors, bounds = inputs(query_lens, key_lens, heads, head_dim, seed=seed)
    options = per_head(options, heads[0])
    ours = differentiate(functools.partial(prefill, impl=impl), tensors, bounds, options)
    exact = differentiate(reference.prefill, tensors, bounds, options, dtype=torch.float64)
    for name, a, e in zip(NAMES, ours, exact, strict=False):
        slack = 100 if name.startswith("ds") else 4  # sums over all pairs, which partly cancel
        assert_close(a, e, what=f"{impl} {name}", dtype=torch.float32, slack=slack)


pairs = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 2, 16, 31, 32, 33, 70])),
    min_size=1,
    max_size=3,
)
heads = st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1), (3, 3)])
head_dims = st.sampled_from([16, 24, 40])


@pytest.mark.parametrize("impl", ["torch", "native"])
@settings(max_examples=25)
@given(pairs, heads, st.sampled_from(SETTINGS), head_dims, st.integers(0, 99))
@example([(40, 20), (0, 5), (3, 0), (1, 70)], (4, 2), SETTINGS[-2], 24, 0)
@example([(20, 20)] * 9, (4, 2), SETTINGS[-2], 24, 0)
def test_gradients_are_those_of_the_reference(impl, lens, heads, options, head_dim, seed):
    query_lens, key_lens = ([lens[i][j] for i in range(len(lens))] for j in range(2))
    check(impl, query_lens, key_lens, heads, options, head_dim, seed)


@settings(max_examples=6)
@given(pairs, heads, st.sampled_from(SETTINGS), head_dims, st.integers(0, 99))
@example([(40, 20), (0, 5), (3, 0), (1, 70)], (4, 2), SETTINGS[-2], 24, 0)
@example([(2, 130)], (7, 1), {"window": 40}, 16, 0)
@example([(130, 130)], (1, 1), {"window": 70}, 16, 0)
@example([(33, 33)], (2, 1), SETTINGS[-1], 16, 0)
def test_gradients_of_the_triton_kernels(lens, heads, options, head_dim, seed):
    query_lens, key_lens = ([lens[i][j] for i in range(len(lens))] for j in range(2))
    check("triton", query_lens, key_lens, heads, options, head_dim, seed)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"window": 2}], ids=str)
def test_gradcheck_of_the_blocked_backward(options):
    tensors, bounds = inputs([3, 2], [2, 4], (2, 1), head_dim=3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in tensors]

    def run(query, key, value):
        options_ = {**options, "impl": "torch", "return_lse": True}
        output, lse = prefill(query, key, value, *bounds, **options_)
        return output, torch.where(lse == -torch.inf, 0.0, lse)

    # the public LSE is float32, which numerical differences do not survive: output alone
    assert torch.autograd.gradcheck(lambda *args: run(*args)[0], leaves)


def test_gradcheck_through_the_lse():
    from blocks.attention._packed import PREFILL

    tensors, bounds = inputs([3, 2], [2, 4], (2, 1), head_dim=3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in tensors]

    def run(query, key, value):
        options = (None, None, 0.6, None, 4.0, True, False, "torch")
        output, lse = PREFILL(query, key, value, *bounds, *options)
        return output, torch.where(lse == -torch.inf, 0.0, lse)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[3], SETTINGS[-2]], ids=str)
def test_in_half_precision_no_worse_than_torch(impl, options):
    tensors, bounds = inputs([33, 5], [40, 70], (4, 2), head_dim=64, dtype=torch.float16)
    options = per_head(options, 4)
    ours = differentiate(functools.partial(prefill, impl=impl), tensors, bounds, options)
    plain = differentiate(plain_torch, tensors, bounds, options)
    exact = differentiate(reference.prefill, tensors, bounds, options, dtype=torch.float64)
    factor = 3 if "softcap" in options else 2
    for i, name in ((0, "output"), (2, "dq"), (3, "dk"), (4, "dv")):
        assert_like_torch(ours[i], plain[i], exact[i], factor=factor, what=f"{impl} {name}")


def plain_torch(query, key, value, q_bounds, k_bounds, *, return_lse, **options):
    """The formula of the reference in operations of the query's own dtype."""
    assert return_lse
    outputs, lses = [], []
    group = query.shape[1] // key.shape[1]
    shared = "key head dim -> key (head group) dim"
    for s in range(len(q_bounds) - 1):
        q = query[q_bounds[s] : q_bounds[s + 1]]
        keys = slice(k_bounds[s], k_bounds[s + 1])
        k, v = (repeat(t[keys], shared, group=group) for t in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * options.get("scale", q.shape[-1] ** -0.5)
        if options.get("softcap"):
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        if options.get("alibi_slopes") is not None:
            slopes = rearrange(options["alibi_slopes"].to(q.dtype), "head -> head 1 1")
            scores = scores - slopes * distance.abs()
        hidden = (distance < 0) | (distance >= options.get("window", len(k) + 1))
        scores = scores.masked_fill(hidden, -torch.inf)
        if options.get("sinks") is not None:
            sink = repeat(options["sinks"].to(q.dtype), "head -> head query 1", query=len(q))
            scores = torch.cat([scores, sink], -1)
        lses.append(scores.logsumexp(-1).T)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(k)], v))
    return AttentionOutput(torch.cat(outputs), torch.cat(lses).float())


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_call_gives_the_same_bits(impl):
    tensors, bounds = inputs([33, 5], [40, 70], (4, 2))
    options = per_head(SETTINGS[-2], 4)
    run = functools.partial(differentiate, functools.partial(prefill, impl=impl))
    for a, b in zip(*(run(tensors, bounds, options) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_no_query_sees_are_not_read_and_get_zeros(impl):
    tensors, bounds = inputs([3], [90], (4, 2))
    tensors[1][:80], tensors[2][:80] = float("nan"), float("nan")
    run = functools.partial(prefill, impl=impl)
    found = differentiate(run, tensors, bounds, {"window": 5})
    clean = [tensors[0], tensors[1].nan_to_num(), tensors[2].nan_to_num()]
    expected = differentiate(reference.prefill, clean, bounds, {"window": 5})
    for a, e in zip(found, expected, strict=True):
        assert_close(a, e, slack=3)
    assert (found[3][:80] == 0).all()
    assert (found[4][:80] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_inputs_and_gradients(impl):
    tensors, bounds = inputs([9], [9], (2, 2))
    fused = torch.stack(tensors, 1).requires_grad_()  # as a view of a fused projection
    wide = torch.randn(9, 2, 32)
    output = prefill(*fused.unbind(1), bounds[0], impl=impl)
    output.backward(wide[..., ::2])
    leaves = [t.requires_grad_() for t in tensors]
    reference.prefill(*leaves, bounds[0]).backward(wide[..., ::2])
    assert fused.grad is not None
    for a, b in zip(fused.grad.unbind(1), leaves, strict=True):
        assert b.grad is not None
        assert_close(a, b.grad, slack=3)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_what_asks_for_a_gradient_gets_one(impl):
    tensors, bounds = inputs([9], [9], (4, 2))
    sinks = torch.zeros(4, requires_grad=True)
    output, lse = prefill(*tensors, bounds[0], sinks=sinks, return_lse=True, impl=impl)
    (gradient,) = torch.autograd.grad(lse.sum(), [sinks])  # and through the LSE alone
    expected = reference.prefill(*tensors, bounds[0], sinks=sinks, return_lse=True)
    assert_close(gradient, torch.autograd.grad(expected.lse.sum(), [sinks])[0], slack=3)
    assert output.requires_grad


def test_memory_of_the_blocked_backward_does_not_grow_with_the_square():
    """Scores of 4096 x 4096 in float32 would be 64 MiB a head."""
    tensors, bounds = inputs([4096], [4096], (1, 1))
    query, key, value = (t.requires_grad_() for t in tensors)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.untyped_storage().nbytes())
            return found

    with Watch():
        prefill(query, key, value, bounds[0], softcap=5.0, impl="torch").sum().backward()
    assert largest <= 4 << 20


def test_work_of_the_backward_is_five_products():
    sizes: Any = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "itemsize": 2, "window": 100}
    forward, backward = (f([256], [512], **sizes) for f in (prefill_work, prefill_backward_work))
    assert backward.flops == 2.5 * forward.flops
