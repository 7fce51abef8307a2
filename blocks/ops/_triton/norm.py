"""RMSNorm and LayerNorm of rows with the residual addition."""

import triton
import triton.language as tl


@triton.jit
def _norm_kernel(
    x_ptr,  # [num_rows, hidden_size], contiguous like all the others
    residual_ptr,  # [num_rows, hidden_size] or None
    weight_ptr,  # [hidden_size]
    bias_ptr,  # [hidden_size] or None
    y_ptr,  # [num_rows, hidden_size]
    total_ptr,  # [num_rows, hidden_size] or None
    mean_ptr,  # [num_rows] fp32, or None; written for the backward pass, as rstd is
    rstd_ptr,  # [num_rows] fp32, or None
    num_rows, hidden_size, eps, weight_offset,
    IS_LAYER: tl.constexpr, ROUND_FIRST: tl.constexpr, TILE_ROWS: tl.constexpr,
    TILE_HIDDEN: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_ROWS whole rows: it reads each once and writes each once.

    The host guarantees TILE_HIDDEN >= hidden_size. ROUND_FIRST is the Llama order: the scaled row
    takes the output's dtype before it is multiplied by the weight.
    """
    rows = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    columns = tl.arange(0, TILE_HIDDEN)
    column_mask = columns < hidden_size
    mask = (rows < num_rows)[:, None] & column_mask[None, :]
    offsets = rows[:, None] * hidden_size + columns[None, :]  # [TILE_ROWS, TILE_HIDDEN]
    dtype = y_ptr.dtype.element_ty

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(dtype)
        tl.store(total_ptr + offsets, rounded, mask=mask)
        x = rounded.to(tl.float32)
    if IS_LAYER:
        mean = tl.sum(x, axis=1) / hidden_size
        x = tl.where(mask, x - mean[:, None], 0.0)
        if mean_ptr is not None:
            tl.store(mean_ptr + rows, mean, mask=rows < num_rows)
    variance = tl.sum(x * x, axis=1) / hidden_size
    rstd = 1.0 / tl.sqrt(variance + eps)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)
    scaled = x * rstd[:, None]
    if ROUND_FIRST:
        scaled = scaled.to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)
    y = scaled * (weight + weight_offset)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + offsets, y.to(dtype), mask=mask)
