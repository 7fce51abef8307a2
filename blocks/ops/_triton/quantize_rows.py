"""Rows rounded to int8 or fp8 with scales of their own."""

import triton
import triton.language as tl

from blocks.ops._triton.product import encode_e4m3, round_to_even


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [num_rows, num_columns]
    stride_x_row,
    values_ptr,  # [num_rows, num_columns] int8, or the bytes of e4m3; contiguous
    scales_ptr,  # [num_rows, num_groups] fp32, contiguous
    num_columns, num_groups, group_size,
    IS_INT8: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program owns one group of one row; it reads it twice, the second time from cache.

    Grid: (num_rows, num_groups). The first pass finds the largest magnitude, the second writes
    numbers. Divisions are rounded correctly, so the numbers are those of the reference.
    """
    largest: tl.constexpr = 127.0 if IS_INT8 else 448.0
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    begin = group * group_size
    end = tl.minimum(begin + group_size, num_columns)
    x_ptr += row * stride_x_row
    values_ptr += row * num_columns

    tops = tl.zeros([TILE], tl.float32)
    for start in range(begin, end, TILE):
        columns = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + columns, mask=columns < end, other=0.0).to(tl.float32)
        tops = tl.maximum(tops, tl.abs(x))
    scale = tl.div_rn(tl.max(tops, axis=0), largest)
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    tl.store(scales_ptr + row * num_groups + group, scale)

    for start in range(begin, end, TILE):
        columns = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + columns, mask=columns < end, other=0.0).to(tl.float32)
        scaled = tl.div_rn(x, tl.broadcast_to(scale, [TILE]))
        scaled = tl.minimum(tl.maximum(scaled, -largest), largest)
        if IS_INT8:
            numbers = round_to_even(scaled).to(tl.int8)
        else:
            numbers = encode_e4m3(scaled)
        tl.store(values_ptr + columns, numbers, mask=columns < end)
