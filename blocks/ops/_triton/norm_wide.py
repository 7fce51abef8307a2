"""The norms and their gradients for rows too wide for one tile: columns go by a tile at a time."""

import triton
import triton.language as tl


@triton.jit
def _wide_sum(x_ptr, residual_ptr, offsets, mask):
    """The sum of x and residual as it is stored, in fp32; of x alone without residual."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + residual).to(x_ptr.dtype.element_ty)
    return x.to(tl.float32)


@triton.jit
def _wide_norm_kernel(
    x_ptr,  # [num_rows, hidden_size], contiguous like all the others
    residual_ptr,  # [num_rows, hidden_size] or None
    weight_ptr,  # [hidden_size]
    bias_ptr,  # [hidden_size] or None
    y_ptr,  # [num_rows, hidden_size]
    total_ptr,  # [num_rows, hidden_size] or None
    mean_ptr,  # [num_rows] fp32, or None
    rstd_ptr,  # [num_rows] fp32, or None
    hidden_size, eps, weight_offset,
    IS_LAYER: tl.constexpr, ROUND_FIRST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program owns one row and passes over it twice, for LayerNorm three times."""
    row = tl.program_id(0).to(tl.int64)
    start_of_row = row * hidden_size
    dtype = y_ptr.dtype.element_ty
    sums = tl.zeros([TILE], tl.float32)
    for start in range(0, hidden_size, TILE):
        columns = start + tl.arange(0, TILE)
        mask = columns < hidden_size
        x = _wide_sum(x_ptr, residual_ptr, start_of_row + columns, mask)
        if residual_ptr is not None:
            tl.store(total_ptr + start_of_row + columns, x.to(dtype), mask=mask)
        sums += x if IS_LAYER else x * x
    mean = 0.0
    if IS_LAYER:
        mean = tl.sum(sums, axis=0) / hidden_size
        sums = tl.zeros([TILE], tl.float32)
        for start in range(0, hidden_size, TILE):
            columns = start + tl.arange(0, TILE)
            mask = columns < hidden_size
            x = _wide_sum(x_ptr, residual_ptr, start_of_row + columns, mask)
            x = tl.where(mask, x - mean, 0.0)
            sums += x * x
        if mean_ptr is not None:
            tl.store(mean_ptr + row, mean)
    rstd = 1.0 / tl.sqrt(tl.sum(sums, axis=0) / hidden_size + eps)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)
    for start in range(0, hidden_size, TILE):
        columns = start + tl.arange(0, TILE)
        mask = columns < hidden_size
        x = _wide_sum(x_ptr, residual_ptr, start_of_row + columns, mask)
        scaled = (x - mean) * rstd
        if ROUND_FIRST:
            scaled = scaled.to(dtype).to(tl.float32)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        y = scaled * (weight + weight_offset)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + start_of_row + columns, y.to(dtype), mask=mask)


@triton.jit
def _wide_row_sums_kernel(
    dy_ptr,  # [num_rows, hidden_size], contiguous like all the others
    x_ptr,  # [num_rows, hidden_size]: the rows that were normed
    weight_ptr,  # [hidden_size]
    mean_ptr,  # [num_rows] fp32; None for RMSNorm
    rstd_ptr,  # [num_rows] fp32
    projection_ptr,  # [num_rows] fp32: mean of d * scaled, in the words of norm_backward.py
    centre_ptr,  # [num_rows] fp32: mean of d; None for RMSNorm
    hidden_size, weight_offset,
    TILE: tl.constexpr,
):  # fmt: skip
    """One program owns one row and finds the two numbers its gradient needs of all its columns."""
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    mean = 0.0
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + row)
    products = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE], tl.float32)
    for start in range(0, hidden_size, TILE):
        columns = start + tl.arange(0, TILE)
        mask = columns < hidden_size
        offsets = row * hidden_size + columns
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        d = dy * (weight + weight_offset)
        products += d * ((x - mean) * rstd)
        sums += d
    tl.store(projection_ptr + row, tl.sum(products, axis=0) / hidden_size)
    if centre_ptr is not None:
        tl.store(centre_ptr + row, tl.sum(sums, axis=0) / hidden_size)


@triton.jit
def _wide_backward_kernel(
    dy_ptr,  # [num_rows, hidden_size], contiguous like all the others
    dtotal_ptr,  # [num_rows, hidden_size] or None: gradient of the residual sum, added to dx
    x_ptr,  # [num_rows, hidden_size]
    weight_ptr,  # [hidden_size]
    mean_ptr,  # [num_rows] fp32; None for RMSNorm
    rstd_ptr,  # [num_rows] fp32
    projection_ptr,  # [num_rows] fp32
    centre_ptr,  # [num_rows] fp32; None for RMSNorm
    dx_ptr,  # [num_rows, hidden_size]
    dweight_ptr,  # [num_programs of axis 0, hidden_size] fp32
    dbias_ptr,  # [num_programs of axis 0, hidden_size] fp32, or None
    num_rows, hidden_size, weight_offset,
    ROUND_FIRST: tl.constexpr, TILE: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """One program owns TILE columns of every num_programs-th row; grid: (any, tiles of columns).

    Its sums for weight and bias stay in registers until its last row.
    """
    program = tl.program_id(0)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < hidden_size
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32) + weight_offset
    dweight = tl.zeros([TILE], tl.float32)
    dbias = tl.zeros([TILE], tl.float32)
    sums = program.to(tl.int64) * hidden_size + columns
    offsets = sums  # of the program's first row
    for row in tl.range(program, num_rows, tl.num_programs(0), num_stages=NUM_STAGES):
        rstd = tl.load(rstd_ptr + row)
        scaled = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if mean_ptr is not None:
            scaled -= tl.load(mean_ptr + row)
        scaled *= rstd
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dx = dy * weight - scaled * tl.load(projection_ptr + row)
        if centre_ptr is not None:
            dx -= tl.load(centre_ptr + row)
        dx *= rstd
        if dtotal_ptr is not None:
            dx += tl.load(dtotal_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if ROUND_FIRST:
            scaled = scaled.to(x_ptr.dtype.element_ty).to(tl.float32)
        dweight += dy * scaled
        if dbias_ptr is not None:
            dbias += dy
        offsets += tl.num_programs(0).to(tl.int64) * hidden_size
    tl.store(dweight_ptr + sums, dweight, mask=mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + sums, dbias, mask=mask)
