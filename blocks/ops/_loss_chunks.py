"""Chunks of rows through the scores and back: what runs under ``linear_cross_entropy``."""

from typing import NamedTuple

import torch
from torch import Tensor

from blocks.ops._loss_rows import LossRule, check_labels, choose_loss, loss_rows, wide_dtype

CHUNK_BYTES = 512 << 20
"""Scores alive at a time on an accelerator [bytes]: large products, little memory."""
CPU_CHUNK_ROWS = 256
"""Rows at a time on a CPU: a chunk of a small model's scores stays in the processor's cache."""
MAX_ROUNDED_CHUNKS = 4
"""Chunks whose weight gradients may be added up in bf16: rounding each sum again makes the error at
most sqrt(1 + 3/4 + 2/4 + 1/4) = 1.6 times that of one rounding."""


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


class How(NamedTuple):
    """Everything but the tensors, in the order the custom operator takes it."""

    ignore_index: int
    softcap: float
    z_loss: float
    label_smoothing: float
    chunk_bytes: int
    sum_dtype: torch.dtype
    impl: str


def counted_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    slopes: Tensor | None,
    how: How,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The rows that count, picked out on a CPU, and their results put back in their places."""
    if not hidden.is_cpu:
        return by_chunks(hidden, weight, bias, labels, slopes, how, wanted)
    check_labels(labels, len(weight), how.ignore_index)
    kept = (labels != how.ignore_index).nonzero().squeeze(1)
    if len(kept) == len(labels):
        return by_chunks(hidden, weight, bias, labels, slopes, how, wanted)
    some_slopes = None if slopes is None else slopes[kept]
    found = by_chunks(
        hidden.index_select(0, kept), weight, bias, labels[kept], some_slopes, how, wanted
    )

    def place(part: Tensor) -> Tensor:
        whole = torch.zeros((len(labels), *part.shape[1:]), dtype=part.dtype)
        return whole.index_copy_(0, kept, part)

    losses, lse, grad_hidden, grad_weight, grad_bias = found
    grad_hidden = place(grad_hidden) if wanted[0] else grad_hidden
    return place(losses), place(lse), grad_hidden, grad_weight, grad_bias


def by_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    slopes: Tensor | None,
    how: How,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, LSEs and the gradients of hidden, weight and bias, of all rows."""
    chosen = choose_loss(how.impl or None, hidden, grad=any(wanted))
    rule = LossRule(*how[:4])
    right, addend = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    results = new_results(hidden, weight, bias, how.sum_dtype, wanted)
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


def new_results(
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


def _score_buffer(hidden: Tensor, weight: Tensor, how: How) -> Tensor:
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
