"""Changes a request asks for in its own row of logits, before sampling: penalties and biases.

Tokens to touch are listed as coordinates (row, token id), each at most once, so the cost follows
the lengths of the sequences and never the vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference

HAS = ("reference", "torch", "triton")
TILE = 256
"""Entries of one Triton program."""


@_checks.expects_tensors
def apply_penalties(
    logits: Float[Tensor, "num_rows vocab_size"],
    rows: Int[Tensor, " num_entries"],
    token_ids: Int[Tensor, " num_entries"],
    output_counts: Int[Tensor, " num_entries"],
    *,
    repetition: Float[Tensor, " num_rows"] | float = 1.0,
    presence: Float[Tensor, " num_rows"] | float = 0.0,
    frequency: Float[Tensor, " num_rows"] | float = 0.0,
    impl: Impl | None = None,
) -> Float[Tensor, "num_rows vocab_size"]:
    """Penalise tokens a sequence has already used; in place, and returned.

    Repetition first (over prompt and output): a positive logit is divided by it, a negative one
    multiplied. Then, for tokens of the output, ``presence + frequency * count`` is subtracted.

    Args:
        logits: fp32, bf16 or fp16; modified.
        rows, token_ids: coordinates of the used tokens, every pair at most once.
        output_counts: how often the token occurs in the output; 0 for tokens of the prompt only.
        repetition: above 0; 1 does nothing.
        presence, frequency: any finite number; 0 does nothing.
        impl: None for the fastest where the logits live.

    Raises:
        ValueError: lengths that disagree, coordinates outside logits, a repetition not above 0, a
            count below 0. Values on an accelerator are not looked at; entries outside the logits
            change nothing.

    >>> import torch
    >>> logits = torch.tensor([[1.0, -1.0, 3.0]])
    >>> used = torch.tensor([0, 1]), torch.tensor([1, 0])
    >>> apply_penalties(logits, torch.tensor([0, 0]), *used, repetition=2.0, presence=0.25)
    tensor([[ 0.2500, -2.0000,  3.0000]])

    Reference: Keskar et al. 2019, "CTRL", section 4.1 (repetition); OpenAI API reference
    (presence and frequency).
    """
    _check_coordinates(logits, rows, token_ids, output_counts=output_counts)
    _checks.check_kind("output_counts", output_counts, "whole number")
    settings = {"repetition": repetition, "presence": presence, "frequency": frequency}
    per_row = [_per_row(name, value, logits) for name, value in settings.items()]
    if logits.device.type == "cpu":
        _checks.check(bool((per_row[0] > 0).all()), "repetition", "numbers above 0", repetition)
        for name, values in zip(("presence", "frequency"), per_row[1:], strict=True):
            _checks.check(bool(values.isfinite().all()), name, "finite numbers", values)
        ok = not bool((output_counts < 0).any())
        _checks.check(ok, "output_counts", "numbers of at least 0", "negative ones")
    chosen = choose_impl(impl, HAS, logits)
    with torch.no_grad():
        if chosen == "reference":
            return reference.apply_penalties(logits, rows, token_ids, output_counts, **settings)
        if chosen == "triton":
            return _edit_triton(logits, rows, token_ids, output_counts, per_row, None)
        repeated, present, frequent = (values[rows] for values in per_row)
        x = logits[rows, token_ids].float()
        x = torch.where(x > 0, x / repeated, x * repeated)
        x -= torch.where(output_counts > 0, present + frequent * output_counts, 0)
        logits[rows, token_ids] = x.to(logits.dtype)
        return logits


def penalties_work(num_entries: int, dtype_bytes: int) -> Work:
    """Work of ``apply_penalties`` or ``add_logit_bias``: every listed logit both ways."""
    return Work(4 * num_entries, num_entries * (2 * dtype_bytes + 24))


@_checks.expects_tensors
def add_logit_bias(
    logits: Float[Tensor, "num_rows vocab_size"],
    rows: Int[Tensor, " num_entries"],
    token_ids: Int[Tensor, " num_entries"],
    bias: Float[Tensor, " num_entries"],
    *,
    impl: Impl | None = None,
) -> Float[Tensor, "num_rows vocab_size"]:
    """Add ``bias`` to the listed logits; in place, and returned.

    Args:
        logits: fp32, bf16 or fp16; modified.
        rows, token_ids: coordinates, every pair at most once.
        bias: what is added; minus infinity bans a token.
        impl: None for the fastest where the logits live.

    Raises:
        ValueError: lengths that disagree, coordinates outside logits, a NaN bias.
    """
    _check_coordinates(logits, rows, token_ids, bias=bias)
    _checks.check_kind("bias", bias, "floating point")
    ok = logits.device.type != "cpu" or not bool(bias.isnan().any())
    _checks.check(ok, "bias", "numbers", "NaN")
    chosen = choose_impl(impl, HAS, logits)
    with torch.no_grad():
        if chosen == "reference":
            return reference.add_logit_bias(logits, rows, token_ids, bias)
        if chosen == "triton":
            return _edit_triton(logits, rows, token_ids, None, [None] * 3, bias.float())
        logits[rows, token_ids] = (logits[rows, token_ids].float() + bias).to(logits.dtype)
        return logits


def _edit_triton(
    logits: Tensor,
    rows: Tensor,
    token_ids: Tensor,
    counts: Tensor | None,
    per_row: list[Any],
    bias: Tensor | None,
) -> Tensor:
    from blocks.ops._triton.penalties import _edit_kernel

    num_entries = rows.shape[0]
    if num_entries:
        launch: Any = _edit_kernel[(-(-num_entries // TILE),)]
        launch(
            logits,
            *logits.stride(),
            rows.long().contiguous(),
            token_ids.long().contiguous(),
            None if counts is None else counts.long().contiguous(),
            *(None if values is None else values.contiguous() for values in per_row),
            None if bias is None else bias.contiguous(),
            num_entries,
            *logits.shape,
            TILE=TILE,
            num_warps=2,
        )
    return logits


def _per_row(name: str, value: Tensor | float, logits: Tensor) -> Tensor:
    num_rows = logits.shape[0]
    if not isinstance(value, Tensor):  # filled there: no copy from the host
        return torch.full((num_rows,), value, dtype=torch.float32, device=logits.device)
    value = value.to(logits.device, torch.float32)
    if value.dim() > 0:
        _checks.check_shape(name, value, (num_rows,), "one number per row of logits")
    return value.expand(num_rows)


def _check_coordinates(
    logits: Tensor, rows: Tensor, token_ids: Tensor, **per_entry: Tensor
) -> None:
    _checks.check_shape("logits", logits, ("num_rows", "vocab_size"))
    _checks.check_shape("rows", rows, ("num_entries",))
    _checks.check_shape("token_ids", token_ids, (rows.shape[0],), "one token id per entry of rows")
    for name, tensor in per_entry.items():
        _checks.check_shape(name, tensor, (rows.shape[0],), "one number per entry of rows")
    _checks.check_kind("logits", logits, "floating point")
    for name, index in (("rows", rows), ("token_ids", token_ids)):  # torch takes uint8 for a mask
        _checks.check_dtype(name, index, (torch.int32, torch.int64), "call .long()")
    _checks.check_same_device(logits=logits, rows=rows, token_ids=token_ids, **per_entry)
    overlaps = any(s == 0 and n > 1 for s, n in zip(logits.stride(), logits.shape, strict=True))
    _checks.check(not overlaps, "logits", "memory of its own", "an expanded view")
    if logits.device.type != "cpu" or rows.numel() == 0:
        return
    for name, index, limit in (
        ("rows", rows, logits.shape[0]),
        ("token_ids", token_ids, logits.shape[1]),
    ):
        low, high = (int(n) for n in index.aminmax())
        ok = low >= 0 and high < limit
        _checks.check(ok, name, f"within [0, {limit})", f"{low} to {high}")
