"""Rows of scores turned into their loss, their LSE and, where asked, their gradient.

The one computation under ``cross_entropy`` (all rows at once) and ``linear_cross_entropy`` (a chunk
of rows at a time). The gradient may be written over the scores.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from blocks import _checks
from blocks._impl import choose_impl
from blocks.ops._library import SUFFIXES, functions

HAS = ("reference", "torch", "triton")
MAX_TILE = 16384
"""Most columns one Triton program looks at together."""
Reduction = Literal["mean", "sum", "none"]


class LossRule(NamedTuple):
    """What is computed of a row; zero turns a term off.

    ignore_index: the label of rows that count nothing.
    softcap: scores become ``softcap * tanh(scores / softcap)``.
    z_loss: weight of the squared LSE.
    label_smoothing: share of the target spread evenly over the vocabulary.
    """

    ignore_index: int
    softcap: float
    z_loss: float
    label_smoothing: float


def make_rule(
    ignore_index: int, softcap: float | None, z_loss: float, label_smoothing: float
) -> LossRule:
    """The checked rule."""
    _checks.check_positive("softcap", softcap, "pass None for no cap")
    _checks.check(z_loss >= 0, "z_loss", "a number of at least 0", z_loss)
    ok = 0 <= label_smoothing < 1
    _checks.check(ok, "label_smoothing", "a share in [0, 1)", label_smoothing)
    return LossRule(ignore_index, softcap or 0.0, z_loss, label_smoothing)


def choose_loss(impl: str | None, scores: Tensor, *, grad: bool) -> str:
    """The implementation for scores of this dtype and device; all of them carry gradients."""
    has = HAS
    if scores.is_cpu and scores.dtype in SUFFIXES:
        has = (*HAS, "native")
    return choose_impl(impl, has, scores, grad=grad, differentiable=has)


def check_labels(labels: Tensor, vocab_size: int, ignore_index: int) -> None:
    """Refuse labels outside the vocabulary on a CPU; on an accelerator looking would wait."""
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or labels.numel() == 0:
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        expected = f"within [0, {vocab_size}) or ignore_index {ignore_index}"
        raise _checks.fail("labels", expected, f"{int(labels[row])} in row {row}")


def mean_scale(labels: Tensor, ignore_index: int) -> Tensor:
    """One over the number of rows that count, float32, on the device."""
    return (labels != ignore_index).sum().float().reciprocal()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses are computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def loss_rows(
    scores: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    grad: Tensor | None,
    rule: LossRule,
    impl: str,
) -> None:
    """Write losses and LSEs of rows, and the gradient times a row's slope.

    Rows with ``ignore_index`` give zeros whatever their scores hold. A label outside the vocabulary
    gives a NaN loss and no gradient, and reads nothing outside the row.

    Args:
        scores: [num_rows, vocab_size], each row contiguous.
        labels: int64 [num_rows], contiguous.
        slopes: [num_rows] in the dtype of losses, contiguous, or None for ones.
        losses, lse: [num_rows], written.
        grad: like scores, written; may be scores itself; None where no gradient is wanted.
    """
    if scores.shape[0] == 0:
        return
    if impl == "triton":
        _triton_rows(scores, labels, slopes, losses, lse, grad, rule)
    elif impl == "native":
        _native_rows(scores, labels, slopes, losses, lse, grad, rule)
    else:
        _torch_rows(scores, labels, slopes, losses, lse, grad, rule)


def _torch_rows(
    scores: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    grad: Tensor | None,
    rule: LossRule,
) -> None:
    vocab_size = scores.shape[1]
    ignored = labels == rule.ignore_index
    inside = (labels >= 0) & (labels < vocab_size) & ~ignored
    targets = torch.where(inside, labels, 0)[:, None]
    x = scores.to(losses.dtype)
    if rule.softcap:
        x = rule.softcap * torch.tanh(x / rule.softcap)
    row_lse = x.logsumexp(-1)
    share = rule.label_smoothing / vocab_size
    loss = row_lse - (1 - rule.label_smoothing) * x.gather(1, targets)[:, 0]
    if share:
        loss -= share * x.sum(-1)
    loss += rule.z_loss * row_lse.square()
    losses.copy_(loss.masked_fill(ignored, 0).masked_fill(~(inside | ignored), torch.nan))
    lse.copy_(row_lse.masked_fill(ignored, 0))
    if grad is None:
        return
    slope = inside.to(x.dtype) if slopes is None else slopes * inside
    bend = 1 - (x / rule.softcap).square() if rule.softcap else None
    spare = x if x is not scores or grad is scores else None  # may be overwritten
    g = torch.sub(x, row_lse[:, None], out=spare if bend is None else None).exp_()
    g *= (slope * (1 + 2 * rule.z_loss * row_lse))[:, None]
    g.scatter_add_(1, targets, ((rule.label_smoothing - 1) * slope)[:, None])
    if share:
        g -= (share * slope)[:, None]
    if bend is not None:
        g *= bend
    grad.copy_(g.masked_fill_(~inside[:, None], 0))


def _native_rows(
    scores: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    grad: Tensor | None,
    rule: LossRule,
) -> None:
    _functions()[scores.dtype](
        scores.data_ptr(),
        scores.stride(0),
        None if grad is None else grad.data_ptr(),
        0 if grad is None else grad.stride(0),
        labels.data_ptr(),
        None if slopes is None else slopes.data_ptr(),
        losses.data_ptr(),
        lse.data_ptr(),
        *scores.shape,
        *rule,
    )


def _triton_rows(
    scores: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    grad: Tensor | None,
    rule: LossRule,
) -> None:
    from blocks.ops._triton.cross_entropy import _loss_kernel

    num_rows, vocab_size = scores.shape
    terms = rule.softcap != 0 or rule.label_smoothing != 0
    tile, num_warps = loss_tiles(vocab_size, terms=terms, amd=torch.version.hip is not None)
    launch: Any = _loss_kernel[(num_rows,)]
    launch(
        scores,
        scores.stride(0),
        grad,
        0 if grad is None else grad.stride(0),
        labels,
        slopes,
        losses,
        lse,
        vocab_size,
        *rule,
        CAPPED=rule.softcap != 0,
        SMOOTHED=rule.label_smoothing != 0,
        TILE=tile,
        num_warps=num_warps,
    )


def loss_tiles(vocab_size: int, *, terms: bool, amd: bool = False) -> tuple[int, int]:
    """Columns a Triton program looks at together, and its warps.

    Long rows get as many threads as a program may have (1024), so that one row at a time fills a
    multiprocessor and is still in its caches when it is read again. A thread, which then has 64
    registers, holds 16 elements; 8 where cap or smoothing (``terms``) want more of them.
    """
    elements = 8 if terms else 16
    widest = MAX_TILE * elements // 16
    tile = max(128, min(widest, 1 << max(vocab_size - 1, 0).bit_length()))
    return tile, max(1, tile // (elements * (64 if amd else 32)))


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("cross_entropy", "loss_rows", "pnpnppppnnnfff")
