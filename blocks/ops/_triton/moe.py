"""Rows sent to where their expert reads them, and a token's rows summed."""

import triton
import triton.language as tl


@triton.jit
def _spread_kernel(
    x_ptr,  # [num_tokens, hidden_size], contiguous like all the others
    weights_ptr,  # [num_tokens, TOP_K] or None
    places_ptr,  # [num_tokens, TOP_K] int32
    rows_ptr,  # [num_tokens * TOP_K, hidden_size]
    hidden_size,
    TOP_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program owns TILE columns of one token: read once, written to each of its TOP_K rows."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < hidden_size
    x = tl.load(x_ptr + token * hidden_size + columns, mask=mask, other=0.0)
    for rank in tl.static_range(TOP_K):
        place = tl.load(places_ptr + token * TOP_K + rank).to(tl.int64)
        row = x
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + token * TOP_K + rank).to(tl.float32)
            row = (x.to(tl.float32) * weight).to(rows_ptr.dtype.element_ty)
        tl.store(rows_ptr + place * hidden_size + columns, row, mask=mask)


@triton.jit
def _combine_kernel(
    rows_ptr,  # [num_tokens * TOP_K, hidden_size], contiguous like all the others
    weights_ptr,  # [num_tokens, TOP_K] or None
    places_ptr,  # [num_tokens, TOP_K] int32
    y_ptr,  # [num_tokens, hidden_size]
    hidden_size,
    TOP_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program owns TILE columns of one token and adds up its rows, in the order of choice."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < hidden_size
    acc = tl.zeros([TILE], tl.float32)
    for rank in tl.static_range(TOP_K):
        place = tl.load(places_ptr + token * TOP_K + rank).to(tl.int64)
        row = tl.load(rows_ptr + place * hidden_size + columns, mask=mask, other=0.0)
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + token * TOP_K + rank).to(tl.float32)
            acc += row.to(tl.float32) * weight
        else:
            acc += row.to(tl.float32)
    tl.store(y_ptr + token * hidden_size + columns, acc.to(y_ptr.dtype.element_ty), mask=mask)
