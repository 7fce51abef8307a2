"""Log-probabilities a client asked to see: the drawn token's, its rank, and the likeliest ones."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks


class TokenLogprobs(NamedTuple):
    """Log-probabilities of one token per row and of the row's likeliest tokens.

    chosen: natural log-probability of the given token, fp32 [num_rows].
    rank: how many tokens are likelier than it (0 for the likeliest), int64 [num_rows].
    top: largest log-probabilities in falling order, fp32 [num_rows, num_top].
    top_ids: their token ids, int64 [num_rows, num_top].
    """

    chosen: Tensor
    rank: Tensor
    top: Tensor
    top_ids: Tensor


@_checks.expects_tensors
def top_logprobs(
    logits: Float[Tensor, "num_rows vocab_size"],
    token_ids: Int[Tensor, " num_rows"],
    num_top: int = 0,
) -> TokenLogprobs:
    """Log-softmax of each row, at the given token and at the ``num_top`` likeliest.

    Computed in fp32 from the logits as they are: pass them before temperature and truncation to
    report the model's own probabilities.

    Args:
        logits: fp32, bf16 or fp16.
        token_ids: one token per row, within [0, vocab_size).
        num_top: in [0, vocab_size].

    Raises:
        ValueError: lengths that disagree, a token id or ``num_top`` out of range.

    >>> import torch
    >>> top_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), 1).chosen
    tensor([-0.6931])
    """
    _checks.check_shape("logits", logits, ("num_rows", "vocab_size"))
    num_rows, vocab_size = logits.shape
    _checks.check_shape("token_ids", token_ids, (num_rows,), "one token per row of logits")
    _checks.check_kind("logits", logits, "floating point")
    _checks.check_kind("token_ids", token_ids, "whole number")
    _checks.check_same_device(logits=logits, token_ids=token_ids)
    _checks.check(0 <= num_top <= vocab_size, "num_top", f"within [0, {vocab_size}]", num_top)
    if logits.device.type == "cpu" and num_rows > 0:
        low, high = (int(n) for n in token_ids.aminmax())
        ok = low >= 0 and high < vocab_size
        _checks.check(ok, "token_ids", f"within [0, {vocab_size})", f"{low} to {high}")
    wide = logits.float()
    chosen = wide.gather(1, token_ids[:, None].long())  # [num_rows, 1]
    total = wide.logsumexp(-1, keepdim=True)
    rank = (wide > chosen).sum(-1)
    top, top_ids = wide.topk(num_top, dim=-1)
    return TokenLogprobs((chosen - total)[:, 0], rank, top - total, top_ids)
