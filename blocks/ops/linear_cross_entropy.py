"""Cross entropy straight from hidden states: the scores of all rows never exist together."""

from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from blocks import _checks
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._loss_rows import (
    LossRule,
    Reduction,
    check_labels,
    choose_loss,
    loss_rows,
    make_rule,
    wide_dtype,
)
from blocks.ops.cross_entropy import (
    TokenLosses,
    check_loss_arguments,
    reduce_losses,
    slopes_ahead,
    times,
)

CHUNK_BYTES = 512 << 20
"""Scores alive at a time on an accelerator [bytes]: large products, little memory."""
CPU_CHUNK_ROWS = 256
"""Rows at a time on a CPU: a chunk of a small model's scores stays in the processor's cache."""
MAX_ROUNDED_CHUNKS = 4
"""Chunks whose weight gradients may be added up in bf16: rounding each sum again makes the error at
most sqrt(1 + 3/4 + 2/4 + 1/4) = 1.6 times that of one rounding."""


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    return_lse: Literal[False] = ...,
    **options: Any,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, return_lse: Literal[True], **options: Any
) -> TokenLosses: ...
@_checks.expects_tensors
def linear_cross_entropy(
    hidden: Float[Tensor, "num_rows hidden_size"],
    weight: Float[Tensor, "vocab_size hidden_size"],
    labels: Int[Tensor, " num_rows"],
    *,
    bias: Float[Tensor, " vocab_size"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    return_lse: bool = False,
    chunk_bytes: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
    impl: Impl | None = None,
) -> Tensor | TokenLosses:
    """``cross_entropy(hidden @ weight.T + bias, labels)`` without the logits.

    A chunk of rows at a time is multiplied by the weight, turned into its gradient in place, and
    multiplied twice more for the gradients of hidden and weight; then its memory is used again.
    Products run in hidden's dtype with fp32 inside, the softmax in fp32; a weight of another dtype
    is copied once. Rows that count nothing cost nothing on a CPU; on an accelerator picking them
    out would synchronise. Bits do not depend on the run. Under ``none`` the incoming gradients are
    not known ahead, so backward makes the scores again.

    Args:
        hidden: fp32, bf16, fp16 or fp64; cast to autocast's dtype where that is on.
        weight: row-major, floating point. bias: one addend per vocabulary entry.
        labels, ignore_index, reduction, softcap, z_loss, label_smoothing, return_lse: as in
            ``cross_entropy``; states of rows that count nothing may hold anything.
        chunk_bytes: of scores alive at a time, at least a row; default ``CHUNK_BYTES`` on an
            accelerator, ``CPU_CHUNK_ROWS`` rows on a CPU.
        accumulate_dtype: what the weight's gradient is added up in over the chunks: float32, or
            the weight's dtype. None takes bf16 for a bf16 weight in at most ``MAX_ROUNDED_CHUNKS``
            chunks (half the memory, at most 1.6 times the error of one rounding), else float32.
        impl: None for the fastest where the tensors live.

    Returns:
        The loss, float32: a scalar, or [num_rows] under ``none``; or ``TokenLosses``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree, labels outside the
            vocabulary (CPU), settings out of range.

    >>> import torch
    >>> linear_cross_entropy(torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([1, 2]))
    tensor(1.3863)

    Reference: Wijmans et al. 2024, "Cut your losses in large-vocabulary language models" (the
    problem); Hsu et al. 2024, "Liger kernel", section 3.2 (gradients in forward, by chunks).
    """
    _checks.check_shape("hidden", hidden, ("num_rows", "hidden_size"))
    _checks.check_shape("weight", weight, ("vocab_size", hidden.shape[1]), "columns as in hidden")
    if bias is not None:
        _checks.check_shape("bias", bias, (weight.shape[0],), "one addend per row of weight")
        _checks.check_kind("bias", bias, "floating point")
    _checks.check_kind("hidden", hidden, "floating point")
    _checks.check_kind("weight", weight, "floating point")
    check_loss_arguments(labels, len(hidden), reduction, hidden=hidden, weight=weight, bias=bias)
    _checks.check_positive("chunk_bytes", chunk_bytes)
    if accumulate_dtype not in (None, weight.dtype, wide_dtype(hidden.dtype)):
        expected = f"None, {weight.dtype} or {wide_dtype(hidden.dtype)}"
        raise _checks.fail("accumulate_dtype", expected, accumulate_dtype)
    rule = make_rule(ignore_index, softcap, z_loss, label_smoothing)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    grad_on = torch.is_grad_enabled()
    wanted = tuple(grad_on and t is not None and t.requires_grad for t in (hidden, weight, bias))
    if impl == "reference":
        check_labels(labels, len(weight), ignore_index)
        return reference.linear_cross_entropy(
            hidden,
            weight,
            labels,
            bias=bias,
            ignore_index=ignore_index,
            reduction=reduction,
            softcap=softcap,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            return_lse=return_lse,
        )
    sums = accumulate_dtype or sum_dtype(hidden, weight, chunk_bytes or 0)
    how = (*rule, chunk_bytes or 0, sums, impl or "")
    if any(wanted):
        function: Any = _LinearCrossEntropy.apply
        loss, losses, lse = function(hidden, weight, bias, labels, reduction, wanted, *how)
    else:
        losses, lse, *_ = _run(hidden, weight, bias, labels, None, how, wanted)
        loss = reduce_losses(losses, labels, ignore_index, reduction)
    return TokenLosses(loss, losses, lse) if return_lse else loss


def linear_cross_entropy_work(
    num_rows: int, hidden_size: int, vocab_size: int, dtype_bytes: int
) -> Work:
    """Work of ``linear_cross_entropy``, forward and backward: three products.

    Bytes: hidden and weight read, their gradients written; scores stay inside.
    """
    elements = num_rows * hidden_size + vocab_size * hidden_size
    return Work(6 * num_rows * hidden_size * vocab_size, 2 * elements * dtype_bytes)


def chunk_rows(num_rows: int, row_bytes: int, chunk_bytes: int, *, on_cpu: bool) -> int:
    """Rows of a chunk: what the budget holds, by 128 where it holds so many, in equal chunks."""
    if on_cpu and chunk_bytes == 0:
        return CPU_CHUNK_ROWS
    most = max(1, (chunk_bytes or CHUNK_BYTES) // max(row_bytes, 1))
    if most < 128:
        return most
    most -= most % 128
    num_chunks = max(1, (num_rows + most - 1) // most)
    even = (num_rows + num_chunks - 1) // num_chunks
    return min(most, max(128, (even + 127) // 128 * 128))


class _How(NamedTuple):
    """Everything but the tensors, in the order the custom operator takes it."""

    ignore_index: int
    softcap: float
    z_loss: float
    label_smoothing: float
    chunk_bytes: int
    sum_dtype: torch.dtype
    impl: str


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, reduction, wanted, *how):
        ctx.how, ctx.wanted, ctx.by_row = how, wanted, reduction == "none"
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        slopes, ctx.later = slopes_ahead(labels, how[0], reduction, hidden.dtype)
        made = (False, False, False) if ctx.by_row else wanted
        losses, lse, *grads = _run(hidden, weight, bias, labels, slopes, how, made)
        ctx.save_for_backward(*((hidden, weight, bias, labels) if ctx.by_row else grads))
        loss = reduce_losses(losses, labels, how[0], reduction)
        if ctx.by_row:
            losses = losses.clone()
        ctx.mark_non_differentiable(losses, lse)
        return loss, losses, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):  # type: ignore[override]
        grads, slope = ctx.saved_tensors, grad_loss
        if ctx.by_row:
            grads = _run(*grads, grad_loss.contiguous(), ctx.how, ctx.wanted)[2:]
            slope = torch.ones_like(grad_loss[0]) if len(grad_loss) else grad_loss.sum()
        scaled = [
            times(grad, slope, ctx.later, dtype) if want else None
            for grad, dtype, want in zip(grads, ctx.dtypes, ctx.wanted, strict=True)
        ]
        return *scaled, *(None,) * (3 + len(ctx.how))


def _run(hidden, weight, bias, labels, slopes, how, wanted):
    """Losses, LSEs and the gradients of hidden, weight and bias (empty where not wanted)."""
    if torch.compiler.is_compiling():
        return _linear_cross_entropy_op(hidden, weight, bias, labels, slopes, *how, *wanted)
    return _counted_rows(hidden, weight, bias, labels, slopes, _How(*how), wanted)


@torch.library.custom_op("blocks::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    slopes: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    chunk_bytes: int,
    sum_dtype: torch.dtype,
    impl: str,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    how = _How(
        ignore_index, softcap, z_loss, label_smoothing, chunk_bytes, sum_dtype, impl
    )  # fmt: skip
    wanted = (want_hidden, want_weight, want_bias)
    return _counted_rows(hidden, weight, bias, labels, slopes, how, wanted)


@_linear_cross_entropy_op.register_fake
def _(hidden, weight, bias, labels, slopes, *rest):
    how, wanted = _How(*rest[:-3]), rest[-3:]
    return _results(hidden, weight, bias, how.sum_dtype, wanted)


def _counted_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    slopes: Tensor | None,
    how: _How,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The rows that count, picked out on a CPU, and their results put back in their places."""
    if not hidden.is_cpu:
        return _by_chunks(hidden, weight, bias, labels, slopes, how, wanted)
    check_labels(labels, len(weight), how.ignore_index)
    kept = (labels != how.ignore_index).nonzero().squeeze(1)
    if len(kept) == len(labels):
        return _by_chunks(hidden, weight, bias, labels, slopes, how, wanted)
    some_slopes = None if slopes is None else slopes[kept]
    found = _by_chunks(
        hidden.index_select(0, kept), weight, bias, labels[kept], some_slopes, how, wanted
    )

    def place(part: Tensor) -> Tensor:
        whole = torch.zeros((len(labels), *part.shape[1:]), dtype=part.dtype)
        return whole.index_copy_(0, kept, part)

    losses, lse, grad_hidden, grad_weight, grad_bias = found
    grad_hidden = place(grad_hidden) if wanted[0] else grad_hidden
    return place(losses), place(lse), grad_hidden, grad_weight, grad_bias


def _by_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    slopes: Tensor | None,
    how: _How,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = choose_loss(how.impl or None, hidden, grad=any(wanted))
    rule = LossRule(*how[:4])
    right, addend = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    results = _results(hidden, weight, bias, how.sum_dtype, wanted)
    losses, lse, grad_hidden, grad_weight, grad_bias = results
    if len(hidden) == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return results
    labels, buffer = labels.contiguous(), _score_buffer(hidden, weight, how)
    inside = ((labels >= 0) & (labels < len(weight)) & (labels != how.ignore_index))[:, None]
    for start in range(0, len(hidden), len(buffer)):
        rows = slice(start, start + len(buffer))
        x = hidden[rows]
        scores = buffer[: len(x)]
        if addend is None:
            torch.mm(x, right.mT, out=scores)
        else:
            torch.addmm(addend, x, right.mT, out=scores)
        slope = None if slopes is None else slopes[rows]
        grad = scores if any(wanted) else None
        loss_rows(scores, labels[rows], slope, losses[rows], lse[rows], grad, rule, chosen)
        if wanted[0]:
            torch.mm(scores, right, out=grad_hidden[rows])
        if wanted[1]:
            counted = torch.where(inside[rows], x, 0)  # a NaN elsewhere, times 0, would be NaN
            _add_product(grad_weight, scores.mT, counted, first=start == 0)
        if wanted[2]:
            part = scores.sum(0, dtype=grad_bias.dtype)
            grad_bias.copy_(part if start == 0 else grad_bias + part)
    return results


def _results(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sum_dtype: torch.dtype,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unwritten losses, LSEs and gradients; those not wanted are empty."""
    wide = wide_dtype(hidden.dtype)
    losses, lse = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(2))
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    first, second, third = (
        hidden.new_empty(shape if want else (0,), dtype=dtype)
        for shape, want, dtype in zip(shapes, wanted, (hidden.dtype, sum_dtype, wide), strict=True)
    )
    return losses, lse, first, second, third


def _score_buffer(hidden: Tensor, weight: Tensor, how: _How) -> Tensor:
    """Room for a chunk of scores; on an accelerator rows begin at multiples of 128 bytes."""
    vocab_size, item = len(weight), hidden.element_size()
    rows = chunk_rows(len(hidden), vocab_size * item, how.chunk_bytes, on_cpu=hidden.is_cpu)
    padded = vocab_size if hidden.is_cpu else -(-vocab_size * item // 128) * 128 // item
    return hidden.new_empty(min(rows, len(hidden)), padded)[:, :vocab_size]


def sum_dtype(hidden: Tensor, weight: Tensor, chunk_bytes: int) -> torch.dtype:
    """What the weight's gradient is added up in; a function of shapes and dtypes alone."""
    if not hidden.dtype == weight.dtype == torch.bfloat16:
        return wide_dtype(hidden.dtype)
    num_rows, row_bytes = hidden.shape[0], weight.shape[0] * hidden.element_size()
    rows = chunk_rows(num_rows, row_bytes, chunk_bytes, on_cpu=hidden.is_cpu)
    return torch.bfloat16 if num_rows <= MAX_ROUNDED_CHUNKS * rows else torch.float32


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """``total += left @ right``, or ``=`` for the first; fp32 sums of narrow products stay inside
    the product where the device's library can."""
    if total.dtype == left.dtype:
        torch.mm(left, right, out=total) if first else total.addmm_(left, right)
    elif total.is_cuda and total.dtype == torch.float32 and torch.version.hip is None:
        if first:
            torch.mm(left, right, out_dtype=total.dtype, out=total)
        else:
            torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        part = left @ right
        total.copy_(part) if first else total.add_(part)
