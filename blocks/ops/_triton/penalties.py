"""Changes to listed logits in place: penalties, or a bias, one element an entry."""

import triton
import triton.language as tl


@triton.jit
def _edit_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    stride_logits_row, stride_logits_token,
    rows_ptr,  # [num_entries] int64
    token_ids_ptr,  # [num_entries] int64
    counts_ptr,  # [num_entries] int64, or None for no penalties
    repetition_ptr,  # [num_rows] fp32, as the next two; None with counts_ptr
    presence_ptr, frequency_ptr,
    bias_ptr,  # [num_entries] fp32, or None for no bias
    num_entries, num_rows, vocab_size,
    TILE: tl.constexpr,
):  # fmt: skip
    """One program owns TILE entries: reads each logit, changes and writes it.

    An entry outside the logits is masked. The host guarantees that no entry is listed twice.
    """
    entries = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = entries < num_entries
    row = tl.load(rows_ptr + entries, mask=mask, other=0)
    token = tl.load(token_ids_ptr + entries, mask=mask, other=0)
    mask &= (row >= 0) & (row < num_rows) & (token >= 0) & (token < vocab_size)
    where = logits_ptr + row * stride_logits_row + token * stride_logits_token
    x = tl.load(where, mask=mask, other=0.0).to(tl.float32)
    if counts_ptr is not None:
        count = tl.load(counts_ptr + entries, mask=mask, other=0)
        repetition = tl.load(repetition_ptr + row, mask=mask, other=1.0)
        presence = tl.load(presence_ptr + row, mask=mask, other=0.0)
        frequency = tl.load(frequency_ptr + row, mask=mask, other=0.0)
        x = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
        x -= tl.where(count > 0, presence + frequency * count.to(tl.float32), 0.0)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + entries, mask=mask, other=0.0)
    tl.store(where, x.to(logits_ptr.dtype.element_ty), mask=mask)
