import functools
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blocks.ops import cross_entropy, cross_entropy_work
from blocks.ops._loss_rows import loss_tiles
from blocks.ops.cross_entropy import _cross_entropy_op
from tests.numerics import assert_close, assert_like_torch

FAST = ["torch", "native", "triton"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "z-loss": {"z_loss": 0.02},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"softcap": 2.0, "z_loss": 0.01, "label_smoothing": 0.2},
}
REDUCTIONS = ["mean", "sum", "none"]


def drawn(num_rows: int, vocab_size: int, seed: int = 0, ignored: float = 0.3):
    """Logits and labels; the logits of ignored rows are NaN."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_rows, vocab_size, generator=generator)
    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    left_out = torch.rand(num_rows, generator=generator) < ignored
    labels[left_out], logits[left_out] = -100, torch.nan
    return logits, labels


def gradient(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Loss, its parts and the gradient of the logits under a fixed incoming gradient."""
    x = logits.clone().requires_grad_()
    found = cross_entropy(x, labels, return_lse=True, **options)
    upstream = torch.linspace(0.5, 2.0, found.loss.numel()).reshape(found.loss.shape)
    (grad,) = torch.autograd.grad(found.loss, x, upstream)
    return found.loss, found.token_losses, found.lse, grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_reference_is_torchs_cross_entropy(reduction, label_smoothing) -> None:
    logits, labels = drawn(9, 31)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    loss, *_, grad = gradient(logits, labels, **options, impl="reference")
    x = logits.nan_to_num().requires_grad_()
    expected = F.cross_entropy(x, labels, **options)
    upstream = torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape)
    assert_close(loss, expected)
    assert_close(grad, torch.autograd.grad(expected, x, upstream)[0])


def test_cap_and_z_loss_are_their_formulas() -> None:
    logits, labels = drawn(9, 31, ignored=0.0)
    x = logits.double().requires_grad_()
    lse = (2 * torch.tanh(x / 2)).logsumexp(-1)
    expected = F.cross_entropy(2 * torch.tanh(x / 2), labels) + 0.1 * lse.square().mean()
    found = cross_entropy(x, labels, softcap=2.0, z_loss=0.1, return_lse=True, impl="reference")
    assert_close(found.loss, expected)
    assert_close(found.lse, lse)


@pytest.mark.parametrize("impl", FAST)
@given(
    num_rows=st.sampled_from([0, 1, 2, 7]),
    vocab_size=st.sampled_from([2, 15, 16, 17, 127, 128, 129, 300]),
    reduction=st.sampled_from(REDUCTIONS),
    options=st.sampled_from(sorted(OPTIONS)),
    inplace=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_losses_and_gradients_equal_the_reference(
    impl, num_rows, vocab_size, reduction, options, inplace, seed
) -> None:
    logits, labels = drawn(num_rows, vocab_size, seed)
    given = {"reduction": reduction, **OPTIONS[options]}
    expected = gradient(logits, labels, **given, impl="reference")
    actual = gradient(logits, labels, **given, inplace=inplace, impl=impl)
    for name, ours, theirs in zip(
        ("loss", "token losses", "lse", "gradient"), actual, expected, strict=True
    ):
        assert_close(ours, theirs, what=name, slack=3)  # sums of another order


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_rows_of_many_tiles(impl, options, monkeypatch) -> None:
    monkeypatch.setattr("blocks.ops._loss_rows.MAX_TILE", 128)
    logits, labels = drawn(3, 5 * 128 + 3, ignored=0.0)
    labels[:] = torch.tensor([0, 5 * 128 + 2, 130])
    expected = gradient(logits, labels, **OPTIONS[options], impl="reference")
    for ours, theirs in zip(
        gradient(logits, labels, **OPTIONS[options], impl=impl), expected, strict=True
    ):
        assert_close(ours, theirs, slack=3)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_fp16_is_no_worse_than_torch_in_fp16(impl, options) -> None:
    logits, labels = drawn(16, 200, ignored=0.0)
    half = logits.half()
    exact = gradient(half.double(), labels, **OPTIONS[options], impl="reference")[3]
    torchs = gradient(half, labels, **OPTIONS[options], impl="reference")[3]
    ours = gradient(half, labels, **OPTIONS[options], impl=impl)[3]
    assert_like_torch(ours, torchs, exact, factor=3)


@pytest.mark.parametrize("impl", ["torch", "native"])
def test_bf16_is_no_worse_than_torch_in_bf16(impl) -> None:
    logits, labels = drawn(16, 200, ignored=0.0)
    low = logits.bfloat16()
    exact = gradient(low.double(), labels, impl="reference")[3]
    torchs = gradient(low, labels, impl="reference")[3]
    assert_like_torch(gradient(low, labels, impl=impl)[3], torchs, exact)


def test_the_gradient_of_tiny_fp16_means_survives_a_loss_scale() -> None:
    """Divided by the rows too early, a probability of 1e-4 among 4096 rows would round to zero."""
    logits = torch.zeros(4096, 8192, dtype=torch.float16).requires_grad_()
    loss = cross_entropy(logits, torch.zeros(4096, dtype=torch.int64), impl="torch")
    (loss * 65536).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == pytest.approx(65536 / 4096 / 8192, rel=1e-2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_those_of_finite_differences(reduction) -> None:
    logits, labels = drawn(4, 6, ignored=0.0)
    labels[1] = -100
    options = {"reduction": reduction, **OPTIONS["all"]}
    for impl in ("reference", "torch"):
        call = functools.partial(cross_entropy, labels=labels, impl=impl, **options)
        assert torch.autograd.gradcheck(call, logits.double().requires_grad_())


@pytest.mark.parametrize("impl", FAST)
def test_the_same_bits_every_run_and_in_any_batch(impl) -> None:
    logits, labels = drawn(6, 300, ignored=0.0)
    first, again = (gradient(logits, labels, reduction="sum", impl=impl) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if impl != "torch":
        alone = [gradient(logits[i : i + 1], labels[i : i + 1], impl=impl) for i in range(6)]
        assert torch.equal(first[1], torch.cat([part[1] for part in alone]))


@pytest.mark.parametrize("impl", FAST)
def test_a_vocabulary_of_one_has_nothing_to_lose(impl) -> None:
    logits, labels = drawn(3, 1, ignored=0.0)
    loss, _, lse, grad = gradient(logits, labels, impl=impl)
    assert_close(lse, logits[:, 0])
    assert loss == 0
    assert (grad == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy under the interpreter
@pytest.mark.parametrize("impl", FAST)
def test_infinite_logits_are_treated_as_torch_treats_them(impl) -> None:
    logits, labels = drawn(4, 40, ignored=0.0)
    logits[0, 1:30], labels[0] = -torch.inf, 35  # masked tokens
    logits[1], labels[1] = -torch.inf, 3
    logits[2, 7] = torch.inf
    logits[3, 5] = torch.nan
    found = cross_entropy(logits, labels, reduction="none", impl=impl)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(found.isnan(), torch.tensor([False, True, True, True]))
    assert_close(found[:1], expected[:1])


@pytest.mark.parametrize("impl", FAST)
def test_an_inplace_gradient_is_where_the_logits_were(impl) -> None:
    logits, labels = drawn(5, 64)
    expected = gradient(logits, labels, reduction="sum", impl=impl)[3]  # times 0.5
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    loss = cross_entropy(x, labels, reduction="sum", inplace=True, impl=impl)
    assert_close(x.detach(), 2 * expected, slack=3)
    loss.backward(torch.tensor(0.5), retain_graph=True)
    assert_close(x.detach(), expected, slack=3)
    assert leaf.grad is not None
    assert_close(leaf.grad, expected, slack=3)
    with pytest.raises(RuntimeError, match="expected one backward with inplace"):
        loss.backward()


@pytest.mark.parametrize("impl", FAST)
def test_views_of_wider_logits_are_read_and_written_row_by_row(impl) -> None:
    wide = torch.full((5, 100), torch.nan)
    logits, labels = drawn(5, 64)
    wide[:, 10:74] = logits
    view = wide[:, 10:74].requires_grad_()
    loss = cross_entropy(view, labels, inplace=True, impl=impl)
    assert_close(loss, cross_entropy(logits, labels, impl="reference"))
    assert wide[:, :10].isnan().all()
    assert wide[:, 74:].isnan().all()


@pytest.mark.parametrize("impl", FAST)
def test_labels_outside_the_vocabulary_on_an_accelerator_read_nothing(impl, monkeypatch) -> None:
    """As there: nobody looks at the labels first. Their rows are NaN to the log, not to weights."""
    module = sys.modules["blocks.ops.cross_entropy"]  # the package has a function of that name
    monkeypatch.setattr(module, "check_labels", lambda *_: None)
    logits, labels = drawn(5, 64, ignored=0.0)
    labels[1], labels[3] = 64, -7
    loss, token_losses, _, grad = gradient(logits, labels, reduction="none", impl=impl)
    assert torch.equal(token_losses.isnan(), torch.tensor([False, True, False, True, False]))
    assert loss.isnan().sum() == 2
    assert (grad[[1, 3]] == 0).all()
    assert grad.isfinite().all()


def test_a_mean_over_no_rows_is_nan_and_moves_nothing() -> None:
    for impl in FAST:
        logits, labels = drawn(3, 20, ignored=1.1)
        loss, *_, grad = gradient(logits, labels, impl=impl)
        assert loss.isnan()
        assert (grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([1, 5])}, r"labels: expected within \[0, 5\) or .*got 5 in row 1"),
        ({"labels": torch.tensor([-1, 2])}, r"labels: expected within .* got -1 in row 0"),
        ({"labels": torch.tensor([1])}, r"labels shape: expected \[2\], got \[1\]"),
        ({"reduction": "avg"}, "reduction: expected 'mean', 'sum' or 'none', got 'avg'"),
        ({"softcap": 0.0}, "softcap: expected a positive number"),
        ({"z_loss": -1.0}, "z_loss: expected a number of at least 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing: expected a share in \[0, 1\)"),
        ({"impl": "fast"}, "impl: expected one of"),
    ],
)
def test_misuse_is_refused_before_anything_is_written(change: dict, message: str) -> None:
    logits = torch.ones(2, 5).requires_grad_()
    given = {"logits": logits, "labels": torch.tensor([1, 2]), "inplace": True, **change}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(cross_entropy)(**given)
    assert (logits == 1).all()


def test_the_operator_keeps_its_promises() -> None:
    logits, labels = drawn(4, 20)
    options = (-100, 2.0, 0.1, 0.1)
    for impl in FAST:
        given = (logits, labels, torch.ones(4), *options, impl, True)
        torch.library.opcheck(_cross_entropy_op, given)


def test_losses_compile_into_one_graph() -> None:
    """In a fresh process: the annotations that tests execute cannot be traced."""
    command = [sys.executable, "-m", "tests.ops.compiled_loss"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_work_counts_one_read_and_one_write() -> None:
    assert cross_entropy_work(8192, 128_256, 2).bytes == 2 * 2 * 8192 * 128_256 + 16 * 8192


@pytest.mark.parametrize("vocab_size", [1, 127, 128, 129, 32000, 128_256, 256_000])
@pytest.mark.parametrize("terms", [False, True])
@pytest.mark.parametrize("amd", [False, True])
def test_a_program_has_at_most_1024_threads(vocab_size, terms, amd) -> None:
    tile, num_warps = loss_tiles(vocab_size, terms=terms, amd=amd)
    assert tile & (tile - 1) == 0
    assert num_warps & (num_warps - 1) == 0
    assert num_warps * (64 if amd else 32) <= 1024


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [32000, 128_256, 256_000])
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_on_the_device_at_real_sizes_without_waiting(device, vocab_size, options) -> None:
    generator = torch.Generator(device).manual_seed(0)
    logits = 3 * torch.randn(64, vocab_size, generator=generator, device=device).bfloat16()
    labels = torch.randint(0, vocab_size, (64,), generator=generator, device=device)
    labels[::5] = -100
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = cross_entropy(x, labels, **OPTIONS[options])
        ours.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    theirs = cross_entropy(y, labels, **OPTIONS[options], impl="reference")
    theirs.backward()
    assert x.grad is not None
    assert y.grad is not None
    assert_close(ours, theirs, slack=10)
    assert_close(x.grad, y.grad)
