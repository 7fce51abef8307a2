"""Cross entropy of logits: loss and gradient in one visit, the gradient in place on request."""

from typing import Any, Literal, overload

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
    mean_scale,
    wide_dtype,
)
from blocks.ops.token_losses import TokenLosses


@overload
def cross_entropy(
    logits: Tensor, labels: Tensor, *, return_lse: Literal[False] = ..., **options: Any
) -> Tensor: ...
@overload
def cross_entropy(
    logits: Tensor, labels: Tensor, *, return_lse: Literal[True], **options: Any
) -> TokenLosses: ...
@_checks.expects_tensors
def cross_entropy(
    logits: Float[Tensor, "num_rows vocab_size"],
    labels: Int[Tensor, " num_rows"],
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    return_lse: bool = False,
    inplace: bool = False,
    impl: Impl | None = None,
) -> Tensor | TokenLosses:
    """Negative log-likelihood of the labels under the softmax of each row of logits.

    A row's loss is ``lse - (1 - s) x[label] - s mean(x) + z_loss lse**2`` with ``x`` the logits,
    capped where asked, and ``s`` the label smoothing; in fp32 (fp64 for fp64 logits). The gradient
    is made in the same visit and kept until backward. Bits do not depend on the run.

    Args:
        logits: each row contiguous; fp32, bf16, fp16 or fp64 (fp64 not with the kernels).
        labels: token ids, or ``ignore_index``. Others are refused on a CPU; on an accelerator,
            where looking would synchronise, such a row has a NaN loss and no gradient.
        ignore_index: label of rows that count nothing; their logits may hold anything.
        reduction: ``mean`` over the rows that count (NaN where none does), ``sum``, or ``none``.
        softcap: logits become ``softcap * tanh(logits / softcap)`` first.
        z_loss: weight of the squared LSE. label_smoothing: in [0, 1).
        return_lse: return ``TokenLosses``, for logging.
        inplace: the gradient takes the place of the logits, which hold nothing else afterwards;
            backward then runs once. Without effect where no gradient is made.
        impl: None for the fastest where the tensors live.

    Returns:
        The loss, float32: a scalar, or [num_rows] under ``none``; or ``TokenLosses``.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree, labels outside the
            vocabulary (CPU), settings out of range.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor(1.3863)

    Reference: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3;
    Szegedy et al. 2016, "Rethinking the Inception architecture", section 7 (label smoothing).
    """
    _checks.check_shape("logits", logits, ("num_rows", "vocab_size"))
    _checks.check_kind("logits", logits, "floating point")
    check_loss_arguments(labels, logits.shape[0], reduction, logits=logits)
    rule = make_rule(ignore_index, softcap, z_loss, label_smoothing)
    wanted = torch.is_grad_enabled() and logits.requires_grad
    if impl == "reference":
        check_labels(labels, logits.shape[1], ignore_index)
        return reference.cross_entropy(
            logits,
            labels,
            ignore_index=ignore_index,
            reduction=reduction,
            softcap=softcap,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            return_lse=return_lse,
        )
    if wanted:
        function: Any = _CrossEntropy.apply
        loss, losses, lse = function(logits, labels, reduction, inplace, *rule, impl or "")
    else:
        losses, lse, _ = _run(logits, labels, None, rule, impl or "", False, False)
        loss = reduce_losses(losses, labels, ignore_index, reduction)
    return TokenLosses(loss, losses, lse) if return_lse else loss


def cross_entropy_work(num_rows: int, vocab_size: int, dtype_bytes: int) -> Work:
    """Work of ``cross_entropy`` with its gradient in place: every logit read once, written once."""
    elements = num_rows * vocab_size
    return Work(7 * elements, 2 * elements * dtype_bytes + 16 * num_rows)


def check_loss_arguments(
    labels: Tensor, num_rows: int, reduction: str, **others: Tensor | None
) -> None:
    """What both losses ask of labels and reduction; ``others`` must live beside the labels."""
    _checks.check_shape("labels", labels, (num_rows,), "one label per row")
    _checks.check_dtype("labels", labels, (torch.int64,), "token ids are int64")
    _checks.check_same_device(labels=labels, **others)
    ok = reduction in ("mean", "sum", "none")
    _checks.check(ok, "reduction", "'mean', 'sum' or 'none'", repr(reduction))


def reduce_losses(losses: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """The sum of the losses, their mean over the rows that count, or they themselves."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (labels != ignore_index).sum()


def slopes_ahead(
    labels: Tensor, ignore_index: int, reduction: str, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What the reduction multiplies gradients by: per row now, or in all later (one is None).

    fp16 would lose small gradients divided by the number of rows, before a loss scale has come in;
    it takes the factor in backward, every other dtype at once.
    """
    if reduction != "mean":
        return None, None
    scale = mean_scale(labels, ignore_index)
    if dtype == torch.float16:
        return None, scale
    return scale.to(wide_dtype(dtype)).expand(labels.shape[0]).contiguous(), None


def times(grad: Tensor, slope: Tensor, later: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``grad * slope * later`` in ``dtype``; grad itself where that is known to be the same."""
    factor = slope if later is None else slope * later
    if torch.compiler.is_compiling():
        return (grad * factor).to(dtype)
    if grad.dtype == dtype and _is_one(factor):
        return grad
    return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, reduction, inplace, ignore, softcap, z, smoothing, impl):
        rule = LossRule(ignore, softcap, z, smoothing)
        slopes, ctx.later = slopes_ahead(labels, ignore, reduction, logits.dtype)
        ctx.over = inplace and not torch.compiler.is_compiling()
        losses, lse, grad = _run(logits, labels, slopes, rule, impl, True, ctx.over)
        ctx.grad = grad if ctx.over else None  # saved tensors may not change; this one may
        ctx.save_for_backward(*(() if ctx.over else (grad,)))
        loss = reduce_losses(losses, labels, ignore, reduction)
        if reduction == "none":
            losses = losses.clone()
        ctx.mark_non_differentiable(losses, lse)
        return loss, losses, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):  # type: ignore[override]
        slope = grad_loss[:, None] if grad_loss.dim() else grad_loss
        if not ctx.over:
            (grad,) = ctx.saved_tensors
            return times(grad, slope, ctx.later, grad.dtype), *(None,) * 8
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("cross_entropy: expected one backward with inplace, got a second")
        return _times_inplace(grad, slope if ctx.later is None else slope * ctx.later), *(None,) * 8


def _is_one(factor: Tensor) -> bool:
    """Known without waiting for a device to be one."""
    return factor.is_cpu and factor.numel() == 1 and factor.item() == 1.0


def _times_inplace(grad: Tensor, factor: Tensor) -> Tensor:
    if grad.is_cpu or factor.dim() or not grad.is_contiguous():
        return grad if _is_one(factor) else grad.mul_(factor)
    from blocks.ops._triton.cross_entropy import _scale_kernel

    launch: Any = _scale_kernel[(-(-grad.numel() // 4096),)]
    launch(grad, factor.float(), grad.numel(), TILE=4096)
    return grad


def _run(
    logits: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    rule: LossRule,
    impl: str,
    wanted: bool,
    over: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, LSEs and gradient (empty where not wanted)."""
    if torch.compiler.is_compiling():
        return _cross_entropy_op(logits, labels, slopes, *rule, impl, wanted)
    check_labels(labels, logits.shape[1], rule.ignore_index)
    chosen = choose_loss(impl or None, logits, grad=wanted)
    scores = logits if logits.stride(1) == 1 else logits.contiguous()
    losses = scores.new_empty(len(labels), dtype=wide_dtype(scores.dtype))
    lse = torch.empty_like(losses)
    grad = None
    if wanted:
        grad = (
            scores if over else torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
        )
    loss_rows(scores, labels.contiguous(), slopes, losses, lse, grad, rule, chosen)
    return losses, lse, scores.new_empty(0) if grad is None else grad


@torch.library.custom_op("blocks::cross_entropy", mutates_args=())
def _cross_entropy_op(
    logits: Tensor,
    labels: Tensor,
    slopes: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    impl: str,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = LossRule(ignore_index, softcap, z_loss, label_smoothing)
    return _run(logits, labels, slopes, rule, impl, wanted, False)


@_cross_entropy_op.register_fake
def _(logits, labels, slopes, ignore_index, softcap, z_loss, label_smoothing, impl, wanted):
    losses = logits.new_empty(labels.shape[0], dtype=wide_dtype(logits.dtype))
    grad = logits.new_empty(logits.shape if wanted else (0,))
    return losses, torch.empty_like(losses), grad
