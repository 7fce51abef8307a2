"""Rows times a weight in few bits: decoded on the way, or multiplied as it is."""

import triton
import triton.language as tl

from blocks.ops._triton.product import decode_e4m3, product


@triton.jit
def _decode(stored, zeros, dtype, FORMAT: tl.constexpr):
    """Stored numbers [TILE_OUT, columns] as numbers of dtype, exactly; without the scale."""
    if FORMAT == "fp8":
        return decode_e4m3(stored).to(dtype)
    elif FORMAT == "int8":
        return stored.to(tl.float32).to(dtype)
    else:
        return (stored.to(tl.int32) - zeros).to(tl.float32).to(dtype)


@triton.jit
def _load_columns(x_ptrs, row_mask, columns, end):
    """x transposed: [columns, TILE_ROWS]."""
    mask = row_mask[None, :] & (columns < end)[:, None]
    return tl.load(x_ptrs + columns[:, None], mask=mask, other=0.0)


@triton.jit
def _decode_linear_kernel(
    x_ptr,  # [num_rows, in_features], rows contiguous
    stride_x_row,
    values_ptr,  # [out_features, stored bytes of a row], contiguous; int8, or uint8 for fp8, int4
    stride_values_row,
    scales_ptr,  # [row groups, num_groups] fp32, contiguous
    zeros_ptr,  # like scales, uint8, or None
    bias_ptr,  # [out_features] or None
    y_ptr,  # [splits, num_rows, out_features], contiguous; fp32 where there are several splits
    num_rows, in_features, out_features, num_groups, split_size,
    FORMAT: tl.constexpr, GROUP_ROWS: tl.constexpr, GROUP_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr, INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_OUT outputs of TILE_ROWS rows over split_size inputs.

    Grid: (tiles of outputs, tiles of rows, splits). The weight stands on the left of the product,
    where a tile may have few rows of x. It is decoded to x's dtype, in which its numbers are
    exact, and the scale of a group multiplies the float32 sum over the group. The host guarantees
    that a tile of inputs lies in one group: GROUP_COLUMNS is a multiple of TILE_IN, or 0 for one
    group a row. bias goes to the first split.
    """
    outs = tl.program_id(0) * TILE_OUT + tl.arange(0, TILE_OUT)
    rows = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    split = tl.program_id(2)
    begin = split * split_size
    end = tl.minimum(begin + split_size, in_features)
    out_mask, row_mask = outs < out_features, rows < num_rows
    dtype = x_ptr.dtype.element_ty
    x_ptrs = x_ptr + rows.to(tl.int64)[None, :] * stride_x_row
    w_ptrs = values_ptr + outs.to(tl.int64)[:, None] * stride_values_row
    groups = (outs // GROUP_ROWS).to(tl.int64) * num_groups

    acc = tl.zeros([TILE_OUT, TILE_ROWS], tl.float32)
    for start in range(begin, end, TILE_IN):
        group = groups if GROUP_COLUMNS == 0 else groups + start // GROUP_COLUMNS
        zeros = 8
        if zeros_ptr is not None:
            zeros = tl.load(zeros_ptr + group, mask=out_mask, other=8).to(tl.int32)[:, None]
        part = acc if GROUP_COLUMNS == 0 else tl.zeros([TILE_OUT, TILE_ROWS], tl.float32)
        if FORMAT == "int4":  # 32 bytes hold 64 columns: the first 32 low, the others high
            at = tl.arange(0, TILE_IN // 2)
            at_mask = out_mask[:, None] & (start // 2 + at < stride_values_row)[None, :]
            packed = tl.load(w_ptrs + start // 2 + at[None, :], mask=at_mask, other=136)
            columns = start + 64 * (at // 32) + at % 32
            x = _load_columns(x_ptrs, row_mask, columns, end)
            w = _decode(packed & 15, zeros, dtype, FORMAT)
            part = product(w, x, part, INTERPRET, PRECISION)
            x = _load_columns(x_ptrs, row_mask, columns + 32, end)
            w = _decode(packed >> 4, zeros, dtype, FORMAT)
            part = product(w, x, part, INTERPRET, PRECISION)
        else:
            columns = start + tl.arange(0, TILE_IN)
            mask = out_mask[:, None] & (columns < end)[None, :]
            stored = tl.load(w_ptrs + columns[None, :], mask=mask, other=0)
            x = _load_columns(x_ptrs, row_mask, columns, end)
            w = _decode(stored, zeros, dtype, FORMAT)
            part = product(w, x, part, INTERPRET, PRECISION)
        if GROUP_COLUMNS == 0:
            acc = part
        else:
            scale = tl.load(scales_ptr + group, mask=out_mask, other=0.0)
            acc += part * scale[:, None]
    if GROUP_COLUMNS == 0:
        acc *= tl.load(scales_ptr + groups, mask=out_mask, other=0.0)[:, None]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + outs, mask=out_mask & (split == 0), other=0.0).to(tl.float32)
        acc += bias[:, None]
    line = split.to(tl.int64) * num_rows + rows
    y_ptrs = y_ptr + line[None, :] * out_features + outs[:, None]
    mask = out_mask[:, None] & row_mask[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _sum_splits_kernel(
    parts_ptr,  # [splits, num_elements] fp32
    y_ptr,  # [num_elements]
    num_elements,
    num_splits,
    TILE: tl.constexpr,
):
    """One program owns TILE results and adds up their splits in order."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = at < num_elements
    acc = tl.zeros([TILE], tl.float32)
    for _ in range(num_splits):
        acc += tl.load(parts_ptr + at, mask=mask, other=0.0)
        parts_ptr += num_elements
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _scaled_linear_kernel(
    x_ptr,  # [num_rows, in_features] int8, e4m3, or the bytes of e4m3; contiguous
    x_scales_ptr,  # [num_rows, num_groups] fp32, contiguous
    values_ptr,  # [out_features, in_features], like x
    scales_ptr,  # [row groups, num_groups] fp32, contiguous
    bias_ptr,  # [out_features] or None
    y_ptr,  # [num_rows, out_features], contiguous
    num_rows, in_features, out_features, num_groups,
    FORMAT: tl.constexpr, GROUP_ROWS: tl.constexpr, GROUP_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr,
    TILES_TOGETHER: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_ROWS rows by TILE_OUT outputs; both factors have eight bits.

    int8 sums are whole numbers; ``fp8`` multiplies e4m3 as it is, ``bytes`` decodes it first, for
    chips whose matrix units do not know it. Sums of fp8 go to float32 registers every TILE_IN
    inputs, because the units keep fewer bits. A group's two scales multiply its sum. Programs are
    numbered so that TILES_TOGETHER tiles of rows share a weight tile in cache.
    """
    tiles_rows, tiles_out = tl.cdiv(num_rows, TILE_ROWS), tl.cdiv(out_features, TILE_OUT)
    program = tl.program_id(0)
    band = program // (TILES_TOGETHER * tiles_out)
    height = tl.minimum(tiles_rows - band * TILES_TOGETHER, TILES_TOGETHER)
    within = program % (TILES_TOGETHER * tiles_out)
    rows = (band * TILES_TOGETHER + within % height) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    outs = (within // height) * TILE_OUT + tl.arange(0, TILE_OUT)
    row_mask, out_mask = rows < num_rows, outs < out_features
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * in_features
    w_ptrs = values_ptr + outs.to(tl.int64)[None, :] * in_features
    x_groups = rows.to(tl.int64) * num_groups
    w_groups = (outs // GROUP_ROWS).to(tl.int64) * num_groups

    NOTHING: tl.constexpr = 0.0 if FORMAT == "fp8" else 0
    SUM: tl.constexpr = tl.int32 if FORMAT == "int8" else tl.float32
    acc = tl.zeros([TILE_ROWS, TILE_OUT], SUM)
    for start in range(0, in_features, TILE_IN):
        columns = start + tl.arange(0, TILE_IN)
        inside = columns < in_features
        x_mask, w_mask = row_mask[:, None] & inside[None, :], out_mask[None, :] & inside[:, None]
        x = tl.load(x_ptrs + columns[None, :], mask=x_mask, other=NOTHING)
        w = tl.load(w_ptrs + columns[:, None], mask=w_mask, other=NOTHING)
        if FORMAT == "int8":
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        else:
            if FORMAT == "bytes":
                x, w = decode_e4m3(x), decode_e4m3(w)
            if INTERPRET:
                x, w = x.to(tl.float32), w.to(tl.float32)
            part = tl.dot(x, w, input_precision="ieee", max_num_imprecise_acc=TILE_IN)
            if GROUP_COLUMNS != 0:
                group = start // GROUP_COLUMNS
                part *= tl.load(x_scales_ptr + x_groups + group, mask=row_mask, other=0.0)[:, None]
                part *= tl.load(scales_ptr + w_groups + group, mask=out_mask, other=0.0)[None, :]
            acc += part
    y = acc.to(tl.float32)
    if GROUP_COLUMNS == 0:
        y *= tl.load(x_scales_ptr + x_groups, mask=row_mask, other=0.0)[:, None]
        y *= tl.load(scales_ptr + w_groups, mask=out_mask, other=0.0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + outs, mask=out_mask, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * out_features + outs[None, :]
    mask = row_mask[:, None] & out_mask[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)
