"""Elementwise activations, alone and times the second half of a row."""

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return x * _sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u)) is sigmoid(2u)
        near = tl.minimum(tl.maximum(x, -16.0), 16.0)  # further out the sigmoid is 0 or 1
        return x * _sigmoid(1.5957691216057308 * (near + 0.044715 * near * near * near))
    else:
        tl.static_assert(ACTIVATION == "relu")
        return tl.where(x < 0.0, 0.0, x)  # NaN stays NaN


@triton.jit
def _activation_kernel(
    x_ptr,  # [num_rows, hidden_size], or [num_rows, 2 * hidden_size] when GATED; contiguous
    y_ptr,  # [num_rows, hidden_size]
    hidden_size,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program owns TILE neighbouring results of one row.

    Grid: (num_rows, tiles of a row) when GATED, else (tiles,) over one long row.
    """
    if GATED:
        row = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    else:
        row = tl.zeros([], tl.int64)
        columns = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = columns < hidden_size
    if GATED:
        gate_ptr = x_ptr + row * 2 * hidden_size + columns
        gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(gate_ptr + hidden_size, mask=mask, other=0.0).to(tl.float32)
        y = _activate(gate, ACTIVATION) * up
    else:
        x = tl.load(x_ptr + row * hidden_size + columns, mask=mask, other=0.0).to(tl.float32)
        y = _activate(x, ACTIVATION)
    tl.store(y_ptr + row * hidden_size + columns, y.to(y_ptr.dtype.element_ty), mask=mask)
