"""Cross entropy straight from hidden states: the scores of all rows never exist together."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from blocks import _checks
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._loss_chunks import How, counted_rows, new_results, sum_dtype
from blocks.ops._loss_rows import Reduction, check_labels, make_rule, wide_dtype
from blocks.ops.cross_entropy import check_loss_arguments, reduce_losses, slopes_ahead, times
from blocks.ops.token_losses import TokenLosses


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
    return counted_rows(hidden, weight, bias, labels, slopes, How(*how), wanted)


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
    how = How(
        ignore_index, softcap, z_loss, label_smoothing, chunk_bytes, sum_dtype, impl
    )  # fmt: skip
    wanted = (want_hidden, want_weight, want_bias)
    return counted_rows(hidden, weight, bias, labels, slopes, how, wanted)


@_linear_cross_entropy_op.register_fake
def _(hidden, weight, bias, labels, slopes, *rest):
    how, wanted = How(*rest[:-3]), rest[-3:]
    return new_results(hidden, weight, bias, how.sum_dtype, wanted)
