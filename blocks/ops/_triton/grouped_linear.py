"""Rows in groups times a matrix a group, and the gradient of the matrices."""

import triton
import triton.language as tl

from blocks.ops._triton.product import product


@triton.jit
def _find_group(offsets_ptr, slot, num_groups, TILE_ROWS: tl.constexpr, STEPS: tl.constexpr):
    """The group a slot of TILE_ROWS rows belongs to, by binary search; 2**STEPS > num_groups.

    Group g owns the slots from ``offsets[g] // TILE_ROWS + g`` up to where group g + 1 begins: at
    least as many as its rows need, whatever its length, and one too many at most. So a slot finds
    its group alone, and the number of slots follows from shapes. Group num_groups is what lies
    behind the last one.
    """
    low = 0
    high = num_groups
    for _ in tl.static_range(STEPS):
        middle = (low + high + 1) // 2
        first = tl.load(offsets_ptr + middle) // TILE_ROWS + middle
        low = tl.where(first <= slot, middle, low)
        high = tl.where(first <= slot, high, middle - 1)
    return low


@triton.jit
def _grouped_linear_kernel(
    x_ptr,  # [*, in_features], rows contiguous
    stride_x_row,
    tokens_ptr,  # [num_rows] int32: the row of x that is row i; None: row i itself
    weight_ptr,  # [num_groups, out_features, in_features], any strides
    stride_weight_group, stride_weight_out, stride_weight_in,
    offsets_ptr,  # [num_groups + 1] int32
    y_ptr,  # [num_rows, out_features], contiguous
    num_rows, num_groups, out_features, in_features,
    STEPS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr,
    INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs take tiles of TILE_ROWS rows by TILE_OUT outputs in turn, a slot's tiles together.

    Grid: any number of programs. A slot has rows of one group only; rows of another are masked.
    Rows behind the last group get zeros. Nothing of x or weight is read where there is no row.
    """
    tiles_out = tl.cdiv(out_features, TILE_OUT)
    num_slots = num_rows // TILE_ROWS + num_groups + 1
    inputs = tl.arange(0, TILE_IN)
    for tile in range(tl.program_id(0), num_slots * tiles_out, tl.num_programs(0)):
        slot = tile // tiles_out
        group = _find_group(offsets_ptr, slot, num_groups, TILE_ROWS, STEPS)
        begin = tl.load(offsets_ptr + group)
        inside = group < num_groups
        end = tl.load(offsets_ptr + group + 1, mask=inside, other=num_rows)
        first = begin + (slot - begin // TILE_ROWS - group) * TILE_ROWS
        if first < end:
            rows = first + tl.arange(0, TILE_ROWS)
            outs = (tile % tiles_out) * TILE_OUT + tl.arange(0, TILE_OUT)
            row_mask = (rows < end)[:, None]
            out_mask = (outs < out_features)[None, :]
            acc = tl.zeros([TILE_ROWS, TILE_OUT], tl.float32)
            if inside:
                sources = rows.to(tl.int64)
                if tokens_ptr is not None:
                    sources = tl.load(tokens_ptr + rows, mask=rows < end, other=0).to(tl.int64)
                x_ptrs = x_ptr + sources[:, None] * stride_x_row + inputs[None, :]
                columns = outs.to(tl.int64)[None, :] * stride_weight_out
                lines = inputs.to(tl.int64)[:, None] * stride_weight_in
                w_ptrs = weight_ptr + group.to(tl.int64) * stride_weight_group + columns + lines
                for start in range(0, in_features, TILE_IN):
                    left = in_features - start
                    x = tl.load(x_ptrs, mask=row_mask & (inputs < left)[None, :], other=0.0)
                    w = tl.load(w_ptrs, mask=out_mask & (inputs < left)[:, None], other=0.0)
                    acc = product(x, w, acc, INTERPRET, PRECISION)
                    x_ptrs += TILE_IN
                    w_ptrs += TILE_IN * stride_weight_in
            y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * out_features + outs[None, :]
            tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=row_mask & out_mask)


@triton.jit
def _grouped_weight_grad_kernel(
    x_ptr,  # [num_rows, in_features], contiguous like all the others
    dy_ptr,  # [num_rows, out_features]
    offsets_ptr,  # [num_groups + 1] int32
    dw_ptr,  # [num_groups, out_features, in_features]
    out_features, in_features,
    TILE_ROWS: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr, INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_OUT by TILE_IN elements of one group's gradient and walks its rows.

    Grid: (tiles of inputs, tiles of outputs, num_groups). A group without rows gets zeros.
    """
    ins = tl.program_id(0) * TILE_IN + tl.arange(0, TILE_IN)
    outs = tl.program_id(1) * TILE_OUT + tl.arange(0, TILE_OUT)
    group = tl.program_id(2).to(tl.int64)
    begin = tl.load(offsets_ptr + group)
    end = tl.load(offsets_ptr + group + 1)
    in_mask, out_mask = ins < in_features, outs < out_features
    acc = tl.zeros([TILE_OUT, TILE_IN], tl.float32)
    for start in range(begin, end, TILE_ROWS):
        rows = (start + tl.arange(0, TILE_ROWS)).to(tl.int64)
        dy_ptrs = dy_ptr + rows[None, :] * out_features + outs[:, None]
        dy = tl.load(dy_ptrs, mask=(rows < end)[None, :] & out_mask[:, None], other=0.0)
        x_ptrs = x_ptr + rows[:, None] * in_features + ins[None, :]
        x = tl.load(x_ptrs, mask=(rows < end)[:, None] & in_mask[None, :], other=0.0)
        acc = product(dy, x, acc, INTERPRET, PRECISION)
    lines = group * out_features + outs.to(tl.int64)
    dw_ptrs = dw_ptr + lines[:, None] * in_features + ins[None, :]
    mask = out_mask[:, None] & in_mask[None, :]
    tl.store(dw_ptrs, acc.to(dw_ptr.dtype.element_ty), mask=mask)
