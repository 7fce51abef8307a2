"""Token slices: any cut of a sequence gives the rows and the gradients of no cut."""

import importlib
import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from blocks import attention
from blocks.attention import SlicePrefix
from tests.attention.paged_case import running_sums
from tests.numerics import assert_close

prefill: Any = attention.prefill
reference: Any = importlib.import_module("blocks.attention.reference")
slice_attention: Any = attention.slice_attention  # called with unpacked lists
slice_attention_backward: Any = attention.slice_attention_backward
SETTINGS = [
    {},
    {"window": 7},
    {"softcap": 3.0},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 20, "softcap": 5.0, "sinks": True, "alibi_slopes": True, "scale": 0.2},
]
CPU = ["reference", "torch", "native"]


def per_head(options: dict, num_heads: int) -> dict:
    values = torch.linspace(-0.5, 1.0, num_heads)
    return {k: values.clone() if v is True else v for k, v in options.items()}


def numbers(length, heads, head_dim=16, dtype=torch.float32, batch=(), seed=0):
    """Query, key, value and gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads[0], heads[1], heads[1], heads[0])
    shapes = [(*batch, length, count, head_dim) for count in counts]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def backward_impl(impl):
    return "torch" if impl == "native" else impl


def by_slices(impl, tensors, cuts, options, cu_seqlens=None, poison=True):
    """Outputs and gradients, one slice after another, over buffers with NaN behind the end."""
    query, key, value, grad = tensors
    length = query.shape[-3]
    bounds = [0, *cuts, length]
    room = [
        torch.full((*t.shape[:-3], length + 5, *t.shape[-2:]), float("nan"), dtype=t.dtype)
        for t in (key, value)
    ]
    compute = torch.promote_types(query.dtype, torch.float32)
    sums = [torch.zeros(t.shape, dtype=compute) for t in room]
    names = [n for n in ("sinks", "alibi_slopes") if n in options]
    buffers = {f"grad_{n}": torch.zeros_like(options[n]) for n in names}
    done = []
    for start, end in itertools.pairwise(bounds):
        for target, source in zip(room, (key, value), strict=True):
            target[..., start:end, :, :] = source[..., start:end, :, :]
        done.append(
            slice_attention(
                query[..., start:end, :, :],
                *room,
                start,
                cu_seqlens=cu_seqlens,
                impl=impl,
                **options,
            )
        )
    output = torch.cat([state.output for state in done], -3)
    lse = torch.cat([state.lse for state in done], -2)
    grads = []
    for i in reversed(range(len(done))):
        start, end = bounds[i], bounds[i + 1]
        rows = (..., slice(start, end), slice(None), slice(None))
        more = {"cu_seqlens": cu_seqlens, "impl": backward_impl(impl), **options, **buffers}
        out, out_lse = done[i]
        more["grad_lse"] = torch.full_like(out_lse, 0.5)
        dq = slice_attention_backward(
            grad[rows], query[rows], *room, out, out_lse, start, *sums, **more
        )
        grads.insert(0, dq)
        if poison and i > 0:  # keys behind the slices to come are never read again
            for target in room:
                target[..., start:, :, :] = float("nan")
    assert all((t[..., length:, :, :] == 0).all() for t in sums)
    found = [torch.cat(grads, -3), *(t[..., :length, :, :] for t in sums), *buffers.values()]
    return output, lse, found


def whole(tensors, options, cu_seqlens=None):
    """The same by the reference in one piece, in float64 unless settings are float32."""
    query, key, value, grad = tensors
    leaves = [t.double().requires_grad_() for t in (query, key, value)]
    options = {
        k: v.clone().requires_grad_() if torch.is_tensor(v) else v for k, v in options.items()
    }
    sums = running_sums([len(query)]) if cu_seqlens is None else cu_seqlens
    state = reference.prefill(*leaves, sums, return_lse=True, **options)
    loss = (state.output * grad.double()).sum() + 0.5 * state.lse.sum()
    wanted = [*leaves, *(options[n] for n in ("sinks", "alibi_slopes") if n in options)]
    return state.output, state.lse, torch.autograd.grad(loss, wanted)


def check(impl, length, cuts, heads, options, dtype=torch.float32, cu_seqlens=None, seed=0):
    options = per_head(options, heads[0])
    tensors = numbers(length, heads, dtype=dtype, seed=seed)
    output, lse, grads = by_slices(impl, tensors, cuts, options, cu_seqlens)
    expected = whole(tensors, options, cu_seqlens)
    assert_close(output, expected[0], what="output")
    assert_close(lse, expected[1], what="lse", dtype=torch.float32, slack=3)
    for name, a, b in zip(
        ("dq", "dk", "dv", "settings", "settings"), grads, expected[2], strict=False
    ):
        per_setting = a.dim() == 1  # sums over all pairs that partly cancel
        limit = torch.float32 if per_setting or dtype == torch.float32 else dtype
        assert_close(a, b, what=name, dtype=limit, slack=100 if per_setting else 3)


lengths = st.sampled_from([1, 2, 16, 33, 65, 100])
cut_at = st.lists(st.floats(0, 1), max_size=4)
heads = st.sampled_from([(1, 1), (4, 2), (7, 1), (3, 3)])


def cuts_of(length, fractions):
    return sorted(int(f * length) for f in fractions)


@pytest.mark.parametrize("impl", CPU)
@settings(max_examples=15)
@given(lengths, cut_at, heads, st.sampled_from(SETTINGS), st.integers(0, 99))
def test_any_slicing_is_no_slicing(impl, length, fractions, heads, options, seed):
    check(impl, length, cuts_of(length, fractions), heads, options, seed=seed)


@settings(max_examples=4)
@given(lengths, cut_at, heads, st.sampled_from(SETTINGS), st.integers(0, 99))
def test_any_slicing_is_no_slicing_in_triton(length, fractions, heads, options, seed):
    check("triton", length, cuts_of(length, fractions), heads, options, seed=seed)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("options", [{}, {"window": 7}, {"softcap": 3.0}], ids=str)
def test_in_float64_gradients_of_slices_are_those_of_the_whole(impl, options):
    tensors = numbers(40, (4, 2), dtype=torch.float64)
    output, lse, grads = by_slices(impl, tensors, [9, 9, 30], options)
    expected = whole(tensors, options)
    assert_close(output, expected[0])
    assert lse.dtype == torch.float64
    for a, b in zip(grads, expected[2], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("impl", [*CPU, "triton"])
@pytest.mark.parametrize("cuts", [[], [10], [13, 31], [30, 35]], ids=str)
def test_documents_do_not_see_one_another(impl, cuts):
    documents = running_sums([10, 0, 25, 5])
    check(impl, 40, cuts, (4, 2), {"window": 11, "softcap": 4.0}, cu_seqlens=documents)


@pytest.mark.parametrize("impl", [*CPU, "triton"])
def test_a_batch_is_its_sequences(impl):
    options = per_head({"sinks": True, "window": 9}, 4)
    tensors = numbers(20, (4, 2), batch=(3,))
    output, lse, grads = by_slices(impl, tensors, [7, 12], options)
    sinks = torch.zeros(4)
    for b in range(3):
        alone = by_slices(impl, [t[b] for t in tensors], [7, 12], options)
        assert_close(output[b], alone[0])
        assert_close(lse[b], alone[1])
        for a, e in zip(grads[:3], alone[2][:3], strict=True):
            assert_close(a[b], e)
        sinks += alone[2][3]
    assert_close(grads[3], sinks, slack=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_native_rows_have_the_bits_of_prefill(options, dtype):
    options = per_head(options, 4)
    tensors = numbers(600, (4, 2), dtype=dtype)
    output, lse, _ = by_slices("native", tensors, [1, 70, 512], options)
    expected = prefill(*tensors[:3], running_sums([600]), return_lse=True, impl="native", **options)
    assert torch.equal(output, expected.output)
    assert torch.equal(lse, expected.lse)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_the_same_calls_give_the_same_bits(impl):
    options = per_head(SETTINGS[-1], 4)
    tensors = numbers(50, (4, 2))
    a, b = (by_slices(impl, tensors, [20, 41], options) for _ in range(2))
    for x, y in zip((*a[:2], *a[2]), (*b[:2], *b[2]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_gradients_are_added_to_what_is_there(impl, dtype):
    query, key, value, grad = numbers(20, (4, 2), dtype=dtype)
    state = slice_attention(query[12:], key, value, 12, impl=impl)
    zero, held = ([torch.full(key.shape, x) for _ in range(2)] for x in (0.0, 3.0))
    for sums in (zero, held):
        args = (grad[12:], query[12:], key, value, *state, 12)
        slice_attention_backward(*args, *sums, window=4, impl=impl)
    for a, b in zip(held, zero, strict=True):
        assert_close(a, b + 3)
        assert (a[:9] == 3).all(), "rows no query sees are left alone"


def attend_by_prefix(prefix, tensors, cuts, options, impl=None, order: Any = reversed):
    """Output and gradients through autograd, a graph a slice."""
    query, key, value, grad = tensors
    length = query.shape[-3]
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    per_head = {n: t.clone().requires_grad_() for n, t in options.items() if torch.is_tensor(t)}
    outputs = []
    for start, end in itertools.pairwise([0, *cuts, length]):
        rows = [t[..., start:end, :, :] for t in leaves]
        outputs.append(prefix.attend(*rows, start, impl=impl, **{**options, **per_head}))
    for i in order(range(len(outputs))):
        start, end = [0, *cuts, length][i : i + 2]
        outputs[i].backward(grad[..., start:end, :, :])
    grads: Any = [t.grad for t in (*leaves, *per_head.values())]
    return torch.cat(outputs, -3).detach(), grads


@pytest.mark.parametrize("impl", [None, "reference", "torch", "triton"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_a_prefix_under_autograd_gives_complete_gradients(impl, batch):
    options = per_head({"sinks": True, "alibi_slopes": True, "window": 15}, 4)
    tensors = numbers(30, (4, 2), batch=batch)
    prefix = SlicePrefix.empty(*batch, 40, 2, 16)
    rounds = 1 if impl == "triton" else 2  # the second over the buffers the first left behind
    for _ in range(rounds):
        output, grads = attend_by_prefix(prefix, tensors, [8, 9, 20], options, impl)
        sums = running_sums([30] * (batch or (1,))[0])
        leaves = [t.flatten(0, -3).clone().requires_grad_() for t in tensors[:3]]
        settings = [t.clone().requires_grad_() for t in (options["sinks"], options["alibi_slopes"])]
        named = {**options, "sinks": settings[0], "alibi_slopes": settings[1]}
        expected = reference.prefill(*leaves, sums, **named)
        assert_close(output.flatten(0, -3), expected)
        expected.backward(tensors[3].flatten(0, -3))
        for a, b in zip(grads, [*leaves, *settings], strict=True):
            assert b.grad is not None
            slack = 100 if a.dim() == 1 else 3
            assert_close(a.flatten(0, -3) if a.dim() > 1 else a, b.grad, slack=slack)
        assert not prefix.pending
        assert (prefix.grad_key == 0).all()
        assert (prefix.grad_value == 0).all()


def test_a_slice_behind_a_gap_is_refused_and_one_run_again_is_not():
    prefix, tensors = SlicePrefix.empty(30, 2, 16), numbers(30, (4, 2))
    query, key, value = tensors[:3]

    def attend(start: int, end: int) -> torch.Tensor:
        return prefix.attend(query[start:end], key[start:end], value[start:end], start)

    with pytest.raises(ValueError, match="start: expected at most 0, tokens written, got 10"):
        attend(10, 20)
    attend(0, 10)
    with pytest.raises(ValueError, match="start: expected at most 10"):
        attend(11, 20)
    assert not prefix.key[10:].any()
    once = [attend(10, 20), attend(20, 30)]
    assert torch.equal(attend(10, 20), once[0])  # as recomputation does
    attend(0, 10)  # another sequence
    with pytest.raises(ValueError, match="start: expected at most 10"):
        attend(20, 30)


def test_backwards_out_of_order_are_refused():
    prefix = SlicePrefix.empty(30, 2, 16)
    with pytest.raises(ValueError, match="last to first"):
        attend_by_prefix(prefix, numbers(30, (4, 2)), [10, 20], {}, order=lambda order: order)


def test_recomputed_slices_are_the_same():
    from torch.utils.checkpoint import checkpoint

    prefix, tensors = SlicePrefix.empty(30, 2, 16), numbers(30, (4, 2))
    _, expected = attend_by_prefix(prefix, tensors, [10, 20], {})
    leaves = [t.clone().requires_grad_() for t in tensors[:3]]
    outputs = []
    for start in (0, 10, 20):
        rows = [t[start : start + 10] for t in leaves]
        outputs.append(checkpoint(prefix.attend, *rows, start, use_reentrant=False))
    for i in (2, 1, 0):
        outputs[i].backward(tensors[3][10 * i : 10 * i + 10])
    for a, b in zip(leaves, expected, strict=True):
        assert a.grad is not None
        assert torch.equal(a.grad, b)


@pytest.mark.parametrize("impl", [*CPU, "triton"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_slice_attention_itself_is_differentiable(impl, batch):
    query, key, value, grad = numbers(20, (4, 2), batch=batch)
    leaves = [query[..., 12:, :, :].clone(), key, value]
    leaves = [t.clone().requires_grad_() for t in leaves]
    output = slice_attention(*leaves, 12, window=9, impl=impl).output
    output.backward(grad[..., 12:, :, :])
    sums = [torch.zeros(t.shape) for t in (key, value)]
    args = [t.detach() for t in leaves]
    state = reference.slice_attention(*args, 12, window=9)
    expected = reference.slice_attention_backward(
        grad[..., 12:, :, :], *args, *state, 12, *sums, window=9
    )
    for leaf, gradient in zip(leaves, (expected, *sums), strict=True):
        assert leaf.grad is not None
        assert_close(leaf.grad, gradient, slack=3)


BAD = [
    ({"start": -1}, "start"),
    ({"start": 15}, "start"),
    ({"cu_seqlens": torch.tensor([0, 5, 9], dtype=torch.int32)}, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, 9, 5, 20], dtype=torch.int32)}, "cu_seqlens"),
    ({"window": 0}, "window"),
]


@pytest.mark.parametrize(("wrong", "named"), BAD)
def test_slices_that_cannot_be_are_refused(wrong, named):
    query, key, value, grad = numbers(20, (4, 2))
    query, grad = query[:8], grad[:8]
    given = {"start": 12, **wrong}
    with pytest.raises(ValueError, match=named):
        slice_attention(query, key, value, **given)
    state = slice_attention(query, key, value, 12)
    sums = [torch.zeros(key.shape) for _ in range(2)]
    start = given.pop("start")
    with pytest.raises(ValueError, match=named):
        slice_attention_backward(grad, query, key, value, *state, start, *sums, **given)
    assert all((t == 0).all() for t in sums)


def test_buffers_that_do_not_fit_are_refused():
    query, key, value, grad = numbers(20, (4, 2), dtype=torch.float16)
    state = slice_attention(query, key, value, 0)
    sums = [torch.zeros(key.shape) for _ in range(2)]
    given = (grad, query, key, value, *state, 0)
    with pytest.raises(TypeError, match=r"grad_key dtype: expected torch\.float32"):
        slice_attention_backward(*given, sums[0].half(), sums[1])
    strided = torch.zeros(2, 20, 16).transpose(0, 1)
    with pytest.raises(ValueError, match="grad_value layout: expected contiguous"):
        slice_attention_backward(*given, sums[0], strided)
    with pytest.raises(ValueError, match="grad_sinks: expected None without sinks"):
        slice_attention_backward(*given, *sums, grad_sinks=torch.zeros(4))
    prefix = SlicePrefix.empty(20, 2, 16, dtype=torch.float16)
    with pytest.raises(ValueError, match="start: expected from 0 to 12"):
        prefix.attend(query[:8], key[:8], value[:8], 13)
    with pytest.raises(ValueError, match="one slice_len"):
        prefix.attend(query[:8], key[:7], value[:8], 0)
    with pytest.raises(ValueError, match="max_len, num_kv_heads, head_dim"):
        SlicePrefix.empty(20, 16)
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32"):
        SlicePrefix.empty(20, 2, 16, dtype=torch.int32)
    with pytest.raises(ValueError, match="max_len, num_kv_heads, head_dim"):
        SlicePrefix.empty(-1, 2, 16)
    with pytest.raises(ValueError, match="grad_value: expected memory of its own"):
        slice_attention_backward(*given, sums[0], sums[0])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"key": torch.ones(3, 2, 16).half()}, TypeError, "key dtype"),
        ({"value": torch.ones(3, 2, 16).bfloat16()}, TypeError, "value dtype"),
        ({"query": torch.ones(3, 3, 16)}, ValueError, "num_heads"),
        ({"query": torch.ones(3, 4, 16).half()}, TypeError, "dtype"),
        ({"start": -1}, ValueError, "start: expected from 0 to 5"),
        ({"window": 0}, ValueError, "window"),
        ({"sinks": torch.ones(3)}, ValueError, "sinks shape"),
        ({"cu_seqlens": torch.tensor([0, 2], dtype=torch.int32)}, ValueError, "cu_seqlens"),
        ({"impl": "fast"}, ValueError, "impl: expected one of"),
        ({"batch_invariant": True, "impl": "torch"}, ValueError, "batch_invariant"),
    ],
)
def test_a_prefix_is_not_written_by_a_call_that_is_refused(change, error, says):
    prefix = SlicePrefix.empty(8, 2, 16)
    rows = {"query": torch.ones(3, 4, 16), "key": torch.ones(3, 2, 16), "start": 0}
    with pytest.raises(error, match=says):
        prefix.attend(**({**rows, "value": rows["key"]} | change))
    assert not prefix.key.any()
    assert not prefix.value.any()
    assert not prefix.pending
