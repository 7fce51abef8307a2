"""Log-probabilities a client asked to see: the drawn token's, its rank, and the likeliest ones."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops.sampling import SAMPLE_WARPS, sample_tiles

HAS = ("reference", "torch", "triton")
MAX_TOP = 64
"""Most likeliest tokens the Triton kernel reports."""


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
    *,
    impl: Impl | None = None,
) -> TokenLogprobs:
    """Log-softmax of each row, at the given token and at the ``num_top`` likeliest.

    Computed in fp32 from the logits as they are: pass them before temperature and truncation to
    report the model's own probabilities. On an accelerator it is one pass over the logits; nothing
    of the vocabulary's size is made, nobody waits. Which of equal tokens are among the likeliest is
    settled by the lowest id there, and left to ``torch.topk`` elsewhere.

    Args:
        logits: fp32, bf16 or fp16.
        token_ids: one token per row, within [0, vocab_size).
        num_top: in [0, vocab_size]; with ``impl="triton"`` at most 64.
        impl: None for the fastest where the logits live.

    Raises:
        ValueError: lengths that disagree, a token id or ``num_top`` out of range. Token ids on an
            accelerator are not looked at: one out of range has NaN.

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
    has = HAS if num_top <= MAX_TOP else HAS[:2]
    _checks.check(
        impl != "triton" or "triton" in has, "num_top", f"at most {MAX_TOP} in Triton", num_top
    )
    with torch.no_grad():
        chosen = choose_impl(impl, has, logits)
        if chosen == "triton":
            return _triton_logprobs(logits, token_ids, num_top)
        if chosen == "torch":
            return _torch_logprobs(logits, token_ids, num_top)
        return TokenLogprobs(*reference.top_logprobs(logits, token_ids, num_top))


def top_logprobs_work(num_rows: int, vocab_size: int, num_top: int, dtype_bytes: int) -> Work:
    """Work of ``top_logprobs``: every logit read once, an exponential and a comparison each."""
    elements = num_rows * vocab_size
    return Work(4 * elements, elements * dtype_bytes + num_rows * (20 + 12 * num_top))


def _torch_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenLogprobs:
    wide = logits.float()
    chosen = wide.gather(1, token_ids[:, None].long())  # [num_rows, 1]
    total = wide.logsumexp(-1, keepdim=True)
    rank = (wide > chosen).sum(-1)
    top, top_ids = wide.topk(num_top, dim=-1)
    return TokenLogprobs((chosen - total)[:, 0], rank, top - total, top_ids)


def _triton_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenLogprobs:
    from blocks.ops._triton.logprobs import _logprobs_kernel

    num_rows, vocab_size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    device = logits.device
    tiles = logprobs_tiles(vocab_size)
    found = TokenLogprobs(
        torch.empty(num_rows, device=device),
        torch.empty(num_rows, dtype=torch.int64, device=device),
        torch.empty(num_rows, num_top, device=device),
        torch.empty(num_rows, num_top, dtype=torch.int64, device=device),
    )
    maxima = torch.empty(num_rows, tiles["NUM_GROUPS"], device=device)
    groups = torch.empty(num_rows, tiles["MAX_GROUPS"], dtype=torch.int32, device=device)
    if num_rows > 0:
        launch: Any = _logprobs_kernel[(num_rows,)]
        launch(
            logits,
            logits.stride(0),
            token_ids.long().contiguous(),
            *found,
            maxima,
            groups,
            vocab_size,
            num_top,
            **tiles,
            num_warps=SAMPLE_WARPS,
        )
    return found


def logprobs_tiles(vocab_size: int) -> dict[str, int]:
    """Sizes of a Triton program's tile, groups and candidates."""
    tiles = sample_tiles(vocab_size)
    del tiles["RACE_TILE"]
    return tiles | {"MAX_GROUPS": min(2 * MAX_TOP, tiles["NUM_GROUPS"])}
