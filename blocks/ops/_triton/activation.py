"""Elementwise activations, alone and times the second half of a row, and their gradients."""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """The activation of x and its slope there; what is not used is not computed."""
    near = tl.minimum(tl.maximum(x, -16.0), 16.0)  # further out both gelus are 0 or x
    if ACTIVATION == "silu":
        share = _sigmoid(x)
        return x * share, share * (1.0 + x * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * share, share + x * 0.3989422804014327 * tl.exp(-0.5 * near * near)
    elif ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u)) is sigmoid(2u)
        share = _sigmoid(1.5957691216057308 * (near + 0.044715 * near * near * near))
        slope_inside = 1.5957691216057308 * (1.0 + 0.134145 * near * near)
        return x * share, share + x * share * (1.0 - share) * slope_inside
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.where(x < 0.0, 0.0, x), tl.where(x <= 0.0, 0.0, 1.0)  # NaN stays NaN


@triton.jit
def _own_tile(hidden_size, GATED: tl.constexpr, TILE: tl.constexpr):
    """Row and columns this program owns: all tiles of a row come one after the other.

    Without GATED there is one long row.
    """
    program = tl.program_id(0)
    if GATED:
        tiles = tl.cdiv(hidden_size, TILE)
        row = (program // tiles).to(tl.int64)
        columns = program % tiles * TILE + tl.arange(0, TILE)
    else:
        row = tl.zeros([], tl.int64)
        columns = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    return row, columns, columns < hidden_size


@triton.jit
def _activation_kernel(
    x_ptr,  # [num_rows, hidden_size], or [num_rows, 2 * hidden_size] when GATED; contiguous
    y_ptr,  # [num_rows, hidden_size]
    hidden_size,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program owns TILE neighbouring results of one row; grid: (rows * tiles of a row,)."""
    row, columns, mask = _own_tile(hidden_size, GATED, TILE)
    in_ptr = x_ptr + row * (2 if GATED else 1) * hidden_size + columns
    x = tl.load(in_ptr, mask=mask, other=0.0).to(tl.float32)
    y, _ = _activate(x, ACTIVATION)
    if GATED:
        y *= tl.load(in_ptr + hidden_size, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * hidden_size + columns, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activation_backward_kernel(
    dy_ptr,  # [num_rows, hidden_size], contiguous as the others are
    x_ptr,  # [num_rows, hidden_size], or [num_rows, 2 * hidden_size] when GATED
    dx_ptr,  # like x
    hidden_size,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program owns TILE neighbouring columns of one row, of both its halves when GATED.

    The activation is computed again from x: all is read once and written once.
    """
    row, columns, mask = _own_tile(hidden_size, GATED, TILE)
    dy = tl.load(dy_ptr + row * hidden_size + columns, mask=mask, other=0.0).to(tl.float32)
    offsets = row * (2 if GATED else 1) * hidden_size + columns
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y, slope = _activate(x, ACTIVATION)
    dtype = dx_ptr.dtype.element_ty
    if GATED:
        up = tl.load(x_ptr + offsets + hidden_size, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets + hidden_size, (dy * y).to(dtype), mask=mask)
        slope *= up
    tl.store(dx_ptr + offsets, (dy * slope).to(dtype), mask=mask)
