import functools
import inspect
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blocks.ops import _loss_chunks, linear_cross_entropy, linear_cross_entropy_work
from blocks.ops._loss_chunks import CPU_CHUNK_ROWS, MAX_ROUNDED_CHUNKS, chunk_rows
from blocks.ops.linear_cross_entropy import _linear_cross_entropy_op
from tests.numerics import assert_close, assert_like_torch
from tests.ops.test_cross_entropy import FAST, OPTIONS, REDUCTIONS

NAMES = ("loss", "token losses", "lse", "grad hidden", "grad weight", "grad bias")


def drawn(num_rows: int, vocab_size: int, hidden_size: int = 12, seed: int = 0, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) / 2
    bias = torch.randn(vocab_size, generator=generator)
    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    labels[torch.rand(num_rows, generator=generator) < ignored] = -100
    return hidden, weight, bias, labels


def gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, **options: Any):
    """Loss, its parts and all gradients under a fixed incoming one."""
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    given_bias = {} if bias is None else {"bias": leaves[2]}
    found = linear_cross_entropy(
        leaves[0], leaves[1], labels, **given_bias, return_lse=True, **options
    )
    upstream = torch.linspace(0.5, 2.0, found.loss.numel()).reshape(found.loss.shape)
    return (*found, *torch.autograd.grad(found.loss, leaves, upstream.to(found.loss)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_reference_is_torchs_linear_and_cross_entropy(reduction) -> None:
    given = drawn(9, 31)
    loss, _, _, *grads = gradients(*given, reduction=reduction, impl="reference")
    leaves = [t.requires_grad_() for t in given[:3]]
    expected = F.cross_entropy(F.linear(*leaves), given[3], reduction=reduction)
    upstream = torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape)
    assert_close(loss, expected)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves, upstream), strict=True):
        assert_close(ours, theirs, slack=2)


@pytest.mark.parametrize("impl", FAST)
@given(
    num_rows=st.sampled_from([0, 1, 4, 5, 9]),
    vocab_size=st.sampled_from([2, 17, 128, 130]),
    rows_at_once=st.sampled_from([1, 4, 100]),
    ignored=st.sampled_from([0.0, 0.5, 1.1]),
    reduction=st.sampled_from(REDUCTIONS),
    options=st.sampled_from(sorted(OPTIONS)),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chunks_give_the_loss_and_gradients_of_the_reference(
    impl, num_rows, vocab_size, rows_at_once, ignored, reduction, options, with_bias, seed
) -> None:
    hidden, weight, bias, labels = drawn(num_rows, vocab_size, seed=seed, ignored=ignored)
    given = (hidden, weight, bias if with_bias else None, labels)
    chosen = {"reduction": reduction, **OPTIONS[options]}
    expected = gradients(*given, **chosen, impl="reference")
    chunk = {"chunk_bytes": rows_at_once * vocab_size * 4}
    actual = gradients(*given, **chosen, **chunk, impl=impl)
    for name, ours, theirs in zip(NAMES, actual, expected, strict=False):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, what=name, slack=5)  # sums of another order


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("num_rows", [CPU_CHUNK_ROWS - 1, CPU_CHUNK_ROWS + 1, 2 * CPU_CHUNK_ROWS])
def test_the_chunks_of_a_cpu(impl, num_rows) -> None:
    given = drawn(num_rows, 17)
    expected = gradients(*given, reduction="sum", impl="reference")
    for ours, theirs in zip(gradients(*given, reduction="sum", impl=impl), expected, strict=True):
        assert_close(ours, theirs, slack=10)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fp16_is_no_worse_than_torch_in_fp16(impl, reduction) -> None:
    hidden, weight, bias, labels = drawn(32, 130, ignored=0.0)
    half = [t.half() for t in (hidden, weight, bias)]
    exact = gradients(
        *[t.double() for t in half], labels=labels, reduction=reduction, impl="reference"
    )
    leaves = [t.requires_grad_() for t in half]
    loss = F.cross_entropy(F.linear(*leaves).float(), labels, reduction=reduction)
    upstream = torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape)
    torchs = torch.autograd.grad(loss, leaves, upstream)
    chosen = {"reduction": reduction, "impl": impl, "chunk_bytes": 8 * 130 * 2}
    actual = gradients(half[0], half[1], half[2], labels, **chosen)
    for ours, theirs, right in zip(actual[3:], torchs, exact[3:], strict=True):
        assert_like_torch(ours, theirs, right)


@pytest.mark.parametrize("num_chunks", [1, MAX_ROUNDED_CHUNKS, 16])
@pytest.mark.parametrize("impl", ["torch", "native"])
def test_bf16_sums_are_no_worse_than_torch_however_many_chunks(impl, num_chunks) -> None:
    hidden, weight, _, labels = drawn(64, 130, ignored=0.0)
    low = [t.bfloat16() for t in (hidden, weight)]
    exact = gradients(low[0].double(), low[1].double(), None, labels, impl="reference")
    leaves = [t.requires_grad_() for t in low]
    loss = F.cross_entropy(F.linear(*leaves).float(), labels)
    torchs = torch.autograd.grad(loss, leaves, torch.tensor(0.5))
    chunk = {"chunk_bytes": 64 // num_chunks * 130 * 2}
    actual = gradients(low[0].detach(), low[1].detach(), None, labels, impl=impl, **chunk)
    assert actual[4].dtype == torch.bfloat16
    for ours, theirs, right in zip(actual[3:], torchs, exact[3:], strict=True):
        assert_like_torch(ours, theirs, right)


@pytest.mark.parametrize("impl", ["torch", "native"])
def test_a_float32_weight_beside_bf16_states_keeps_a_float32_gradient(impl) -> None:
    hidden, weight, _, labels = drawn(300, 50, ignored=0.2)
    found = gradients(hidden.bfloat16(), weight, None, labels, reduction="sum", impl=impl)
    exact = gradients(hidden, weight, None, labels, reduction="sum", impl="reference")
    assert [t.dtype for t in found[3:]] == [torch.bfloat16, torch.float32]
    assert found[0].dtype == torch.float32
    assert_close(found[0], exact[0], dtype=torch.bfloat16)
    assert_close(found[4], exact[4], dtype=torch.bfloat16)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_those_of_finite_differences(reduction) -> None:
    hidden, weight, bias, labels = drawn(4, 6, hidden_size=3, ignored=0.0)
    labels[1] = -100
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    for impl in ("reference", "torch"):

        def call(hidden, weight, bias, impl: Any = impl):
            return linear_cross_entropy(
                hidden, weight, labels, bias=bias, reduction=reduction, impl=impl,
                chunk_bytes=2 * 6 * 8, **OPTIONS["all"],
            )  # fmt: skip

        assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("impl", FAST)
def test_only_the_wanted_gradients_are_made(impl) -> None:
    hidden, weight, bias, labels = drawn(5, 20)
    expected = gradients(hidden, weight, bias, labels, impl="reference")
    for wanted in range(3):
        tensors = [hidden, weight, bias]
        tensors[wanted] = leaf = tensors[wanted].clone().requires_grad_()
        linear_cross_entropy(tensors[0], tensors[1], labels, bias=tensors[2], impl=impl).backward()
        assert leaf.grad is not None
        assert_close(0.5 * leaf.grad, expected[3 + wanted], slack=5)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, bias=bias, impl=impl)
    assert not loss.requires_grad
    assert_close(loss, expected[0])


@pytest.mark.parametrize("impl", FAST)
def test_the_same_bits_every_run(impl) -> None:
    given = drawn(9, 130)
    options = {"chunk_bytes": 4 * 130 * 4, "impl": impl}
    first, again = (gradients(*given, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("every_row", [False, True])
@pytest.mark.parametrize("impl", ["reference", "torch", "native", "triton"])
def test_states_of_ignored_rows_may_hold_anything(impl, every_row, monkeypatch) -> None:
    """Where ignored rows are left out, and where they go through the products (accelerators)."""
    if every_row:
        module = sys.modules["blocks.ops.linear_cross_entropy"]
        monkeypatch.setattr(module, "counted_rows", _loss_chunks.by_chunks)
    hidden, weight, bias, labels = drawn(9, 20)
    expected = gradients(hidden, weight, bias, labels, impl="reference")
    hidden[labels == -100] = torch.nan
    for ours, theirs in zip(
        gradients(hidden, weight, bias, labels, impl=impl), expected, strict=True
    ):
        assert_close(ours, theirs, slack=5)


def test_the_loss_of_an_accelerator_selects_no_rows(monkeypatch) -> None:
    """Counting the rows would wait for the device; seen here by forbidding the call."""
    hidden, weight, _, labels = drawn(5, 20)
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda self: False))
    monkeypatch.setattr(Tensor, "nonzero", None)
    monkeypatch.setattr(Tensor, "item", None)
    found = linear_cross_entropy(hidden, weight, labels, impl="triton")
    monkeypatch.undo()
    assert_close(found, linear_cross_entropy(hidden, weight, labels, impl="reference"))


def test_autocast_decides_the_dtype_of_the_products() -> None:
    hidden, weight, _, labels = drawn(40, 20)
    leaf = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(leaf, weight, labels)
    loss.backward()
    low = linear_cross_entropy(hidden.bfloat16(), weight, labels)
    assert torch.equal(loss, low)
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32


def test_backward_may_run_twice() -> None:
    hidden, weight, _, labels = drawn(5, 20)
    leaf = hidden.requires_grad_()
    loss = linear_cross_entropy(leaf, weight, labels)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(loss, leaf, torch.tensor(2.0))
    assert_close(again, 2 * first)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    hidden, weight, _, labels = drawn(5, 20)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, labels)
    upstream = torch.tensor(2.0, requires_grad=True)
    (first,) = torch.autograd.grad(loss, hidden, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(7, 4)}, r"weight shape: expected \[vocab_size, 3\], got \[7, 4\]"),
        ({"bias": torch.ones(4)}, r"bias shape: expected \[7\], got \[4\]"),
        ({"labels": torch.tensor([1, 7])}, r"labels: expected within \[0, 7\) or .*got 7 in row 1"),
        ({"chunk_bytes": -1}, "chunk_bytes: expected a positive number"),
        ({"accumulate_dtype": torch.float16}, "accumulate_dtype: expected None, torch.float32 or"),
        ({"impl": "fast"}, "impl: expected one of"),
        ({"reduction": "avg"}, "reduction: expected"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    given = {"hidden": torch.ones(2, 3), "weight": torch.ones(7, 3), "labels": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(linear_cross_entropy)(**{**given, **change})


@given(
    num_rows=st.integers(0, 20_000),
    row_bytes=st.integers(1, 10**6),
    chunk_bytes=st.sampled_from([0, 1, 1 << 20, 512 << 20]),
)
def test_chunks_keep_to_the_budget(num_rows, row_bytes, chunk_bytes) -> None:
    rows = chunk_rows(num_rows, row_bytes, chunk_bytes, on_cpu=False)
    assert rows >= 1
    assert rows == 1 or rows * row_bytes <= (chunk_bytes or 512 << 20)
    assert rows < 128 or rows % 128 == 0


def test_llama3_on_an_accelerator_runs_in_four_chunks() -> None:
    assert chunk_rows(8192, 128_256 * 2, 0, on_cpu=False) == 2048


def test_the_operator_keeps_its_promises() -> None:
    hidden, weight, bias, labels = drawn(5, 20)
    options = (-100, 2.0, 0.1, 0.1, 20 * 4 * 2, torch.float32)
    for impl, wanted in zip(FAST, [(True, True, True), (False, True, False), (True, False, True)]):  # noqa: B905
        given = (hidden, weight, bias, labels, torch.ones(5), *options, impl, *wanted)
        torch.library.opcheck(_linear_cross_entropy_op, given)


def test_work_counts_three_products() -> None:
    work = linear_cross_entropy_work(8192, 4096, 128_256, 2)
    assert work.flops == 3 * 2 * 8192 * 4096 * 128_256


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [None, torch.float32])
def test_on_the_device_without_waiting_and_within_the_budget(device, accumulate) -> None:
    generator = torch.Generator(device).manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    hidden, weight = normal(4096, 1024).bfloat16(), (normal(50_257, 1024) / 32).bfloat16()
    labels = torch.randint(0, 50_257, (4096,), generator=generator, device=device)
    labels[::7] = -100
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    chunk = 64 << 20

    def ours():
        loss = linear_cross_entropy(
            leaves[0], leaves[1], labels, chunk_bytes=chunk, accumulate_dtype=accumulate
        )
        return loss, *torch.autograd.grad(loss, leaves)

    first = ours()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    extra = torch.cuda.max_memory_allocated() - before
    sums = weight.numel() * (4 if accumulate or 4 * chunk < 4096 * 50_257 * 2 else 2)
    assert extra < chunk + sums + weight.numel() * 2 + 3 * hidden.numel() * 2 + (32 << 20)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    exact = gradients(hidden.detach(), weight.detach(), None, labels, impl="reference")
    assert_close(first[0], exact[0], dtype=torch.bfloat16)
    assert_close(0.5 * first[1], exact[3])
    assert_close(0.5 * first[2], exact[4])
