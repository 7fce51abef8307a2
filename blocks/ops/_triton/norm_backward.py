"""Gradients of RMSNorm and LayerNorm: rows in one pass, weight and bias from partial sums.

With ``scaled`` the standardised row and ``d`` the gradient of the output times the weight, the
gradient of the row is ``rstd * (d - scaled * mean(d * scaled) - mean(d))``, the last term for
LayerNorm alone. That of the weight is the sum over rows of ``dy * scaled``, of the bias ``dy``.
"""

import triton
import triton.language as tl


@triton.jit
def _norm_backward_kernel(
    dy_ptr,  # [num_rows, hidden_size], contiguous like all the others
    dtotal_ptr,  # [num_rows, hidden_size] or None: gradient of the residual sum, added to dx
    x_ptr,  # [num_rows, hidden_size]: the rows that were normed (the residual sum)
    weight_ptr,  # [hidden_size]
    mean_ptr,  # [num_rows] fp32; None for RMSNorm
    rstd_ptr,  # [num_rows] fp32
    dx_ptr,  # [num_rows, hidden_size]
    dweight_ptr,  # [num_programs, hidden_size] fp32
    dbias_ptr,  # [num_programs, hidden_size] fp32, or None
    num_rows, hidden_size, weight_offset,
    ROUND_FIRST: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_HIDDEN: tl.constexpr,
    REREAD: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """One program owns every num_programs-th tile of TILE_ROWS whole rows.

    It reads dy and x once, writes dx once, and keeps its sums for weight and bias in registers
    until its last tile. REREAD, for rows that leave no registers to wait in, takes them from the
    cache again after the row's sums are known. The host guarantees TILE_HIDDEN >= hidden_size. The
    grid may have any size; the order of all sums follows from it alone.
    """
    program = tl.program_id(0)
    columns = tl.arange(0, TILE_HIDDEN)
    column_mask = columns < hidden_size
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)
    dweight = tl.zeros([TILE_ROWS, TILE_HIDDEN], tl.float32)
    dbias = tl.zeros([TILE_ROWS, TILE_HIDDEN], tl.float32)
    num_tiles = tl.cdiv(num_rows, TILE_ROWS)
    for tile in tl.range(program, num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        rows = (tile * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
        row_mask = rows < num_rows
        mask = row_mask[:, None] & column_mask[None, :]
        offsets = rows[:, None] * hidden_size + columns[None, :]  # [TILE_ROWS, TILE_HIDDEN]
        rstd = tl.load(rstd_ptr + rows, mask=row_mask, other=0.0)[:, None]
        mean = tl.zeros_like(rstd)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + rows, mask=row_mask, other=0.0)[:, None]
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if REREAD:
            weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)
        d = dy * (weight + weight_offset)[None, :]
        scaled = (x - mean) * rstd
        projection = (tl.sum(d * scaled, axis=1) / hidden_size)[:, None]
        centre = tl.zeros_like(rstd)
        if mean_ptr is not None:
            centre = (tl.sum(d, axis=1) / hidden_size)[:, None]
        if REREAD:
            tl.debug_barrier()  # without it the compiler would merge the two readings
            dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)
            d = dy * (weight + weight_offset)[None, :]
            scaled = (x - mean) * rstd
        dx = (d - scaled * projection - centre) * rstd
        if dtotal_ptr is not None:
            dx += tl.load(dtotal_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if ROUND_FIRST:
            scaled = scaled.to(x_ptr.dtype.element_ty).to(tl.float32)
        dweight += dy * scaled
        if dbias_ptr is not None:
            dbias += dy
    sums = program.to(tl.int64) * hidden_size + columns
    tl.store(dweight_ptr + sums, tl.sum(dweight, axis=0), mask=column_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + sums, tl.sum(dbias, axis=0), mask=column_mask)


@triton.jit
def _sum_partials_kernel(
    partials_ptr,  # [num_partials, hidden_size] fp32
    out_ptr,  # [hidden_size]
    num_partials,
    hidden_size,
    TILE_PARTIALS: tl.constexpr,
    TILE_HIDDEN: tl.constexpr,
):
    """One program owns TILE_HIDDEN columns and adds up their partial sums in a fixed order."""
    columns = tl.program_id(0) * TILE_HIDDEN + tl.arange(0, TILE_HIDDEN)
    column_mask = columns < hidden_size
    sums = tl.zeros([TILE_PARTIALS, TILE_HIDDEN], tl.float32)
    for start in range(0, num_partials, TILE_PARTIALS):
        partials = (start + tl.arange(0, TILE_PARTIALS)).to(tl.int64)
        mask = (partials < num_partials)[:, None] & column_mask[None, :]
        offsets = partials[:, None] * hidden_size + columns[None, :]
        sums += tl.load(partials_ptr + offsets, mask=mask, other=0.0)
    total = tl.sum(sums, axis=0)
    tl.store(out_ptr + columns, total.to(out_ptr.dtype.element_ty), mask=column_mask)
