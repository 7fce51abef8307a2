"""Embedding and cross entropy with the vocabulary cut over a group.

Rank r holds the rows ``run_of(vocab_size, group.size, r)`` of the table, so it makes those columns
of the scores. No rank ever has a whole row of scores: the ranks exchange three numbers a token.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from blocks._checks import check
from blocks.sharding.group import Group
from blocks.sharding.linear import leave
from blocks.sharding.placement import run_of


def vocab_embedding(
    token_ids: Int[Tensor, " num_tokens"],
    weight: Float[Tensor, "vocab_local width"],
    vocab_size: int,
    group: Group,
    *,
    num_tokens: int | None = None,
) -> Float[Tensor, "kept_tokens width"]:
    """The rows of the whole table at ``token_ids``: every rank gives those it has, zeros else.

    Args:
        token_ids: alike on all ranks.
        weight: this rank's rows.
        vocab_size: rows of the whole table.
        num_tokens: where given, only this rank's run of the tokens comes back (sequence parallel).

    Raises:
        ValueError: a weight of another length than this rank's run.
    """
    index, mine = _local(token_ids, weight.shape[0], vocab_size, group)
    if weight.shape[0] == 0:
        found = weight.new_zeros(len(token_ids), weight.shape[1]) + weight.sum()
    else:
        found = F.embedding(index, weight) * mine.unsqueeze(-1)
    return leave(found, group, num_tokens=num_tokens)


def vocab_cross_entropy(
    logits: Float[Tensor, "num_rows vocab_local"],
    labels: Int[Tensor, " num_rows"],
    vocab_size: int,
    group: Group,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Cross entropy of rows of scores that lie in runs over the ranks; alike on all ranks.

    Each rank takes the largest score of its own run, the log of the sum of exponentials over it,
    and the label's score, in float32 (float64 for float64); the ranks exchange these three, so the
    loss has the same bits on every rank. Backward exchanges nothing: softmax less one at the
    label, of this rank's run.

    Args:
        logits: this rank's columns, as ``column_linear`` makes them.
        labels: alike on all ranks.
        vocab_size: columns of the whole.
        ignore_index: label of rows that do not count.
        reduction: ``mean`` over the rows that count (0 where none does), ``sum`` or ``none``.

    Returns:
        The loss in float32 (float64); a scalar, or [num_rows] under ``none``.

    Raises:
        ValueError: logits of another width than this rank's run; an unknown reduction.
    """
    kinds = ("mean", "sum", "none")
    check(reduction in kinds, "reduction", " or ".join(kinds), repr(reduction))
    index, mine = _local(labels, logits.shape[1], vocab_size, group)
    counts = labels != ignore_index
    function: Any = _VocabCrossEntropy.apply
    losses = function(logits, index, mine & counts, counts, group)
    if reduction == "none":
        return losses
    return losses.sum() / (counts.sum().clamp_min(1) if reduction == "mean" else 1)


def _local(ids: Tensor, num_held: int, vocab_size: int, group: Group) -> tuple[Tensor, Tensor]:
    """Where an id is in this rank's run, 0 if elsewhere; and whether it is there."""
    run = run_of(vocab_size, group.size, group.rank)
    check(num_held == run.size, "vocabulary held", f"{run.size}, rows {run}", num_held)
    mine = (ids >= run.start) & (ids < run.stop)
    return torch.where(mine, ids - run.start, 0), mine


class _VocabCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, mine: Tensor, counts: Tensor, group: Group
    ) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        scores = logits.to(wide)
        top, spread = scores.new_full((2, len(scores)), -torch.inf)
        label = torch.zeros_like(top)
        if scores.shape[1]:  # a rank behind the end of the vocabulary has none
            top = scores.amax(1)
            spread = (scores - top[:, None]).exp_().sum(1).log_()
            label = torch.where(mine, scores.gather(1, index[:, None])[:, 0], 0)
        if group.size > 1:
            tops, spreads, labels = torch.stack(
                group.all_gather(torch.stack([top, spread, label])), 1
            )
            top = tops.amax(0)
            spread = (spreads + (tops - top)).logsumexp(0)
            label = labels.sum(0)
        ctx.save_for_backward(logits, top, spread, index, mine, counts)
        return torch.where(counts, spread - (label - top), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, top, spread, index, mine, counts = ctx.saved_tensors
        slope = torch.where(counts, grad, 0)[:, None]
        found = (logits.to(top.dtype) - top[:, None]).sub_(spread[:, None]).exp_() * slope
        if found.shape[1]:
            found.scatter_add_(1, index[:, None], -slope * mine[:, None])
        return found.to(logits.dtype), None, None, None, None
