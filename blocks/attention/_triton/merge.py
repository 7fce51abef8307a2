"""Attention over a union of key sets from attention over each."""

import triton
import triton.language as tl


@triton.jit
def _merge_states_kernel(
    outputs_ptr,  # [num_states, num_rows, HEAD_DIM], contiguous
    lses_ptr,  # float32 [num_states, num_rows]
    output_ptr,  # [num_rows, HEAD_DIM]
    lse_ptr,  # float32 [num_rows]
    num_states, num_rows,
    HEAD_DIM: tl.constexpr, TILE_D: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """One program: one (token, head) row. Reads each state's LSE and output once, TILE_S at a time.

    Keeps a running maximum, so states may come in any order and of any size. A state with -inf
    costs its LSE: its output is not read. TILE_S depends on HEAD_DIM alone, so states with -inf at
    the end change no bit.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, TILE_D)
    mask_d = offs_d < HEAD_DIM
    most = float("-inf")
    total = 0.0
    acc = tl.zeros([TILE_D], tl.float32)
    for first in tl.range(0, num_states, TILE_S):
        state = first + tl.arange(0, TILE_S)
        at = state.to(tl.int64) * num_rows + row
        lse = tl.load(lses_ptr + at, mask=state < num_states, other=float("-inf"))
        mask = (lse > float("-inf"))[:, None] & mask_d[None, :]
        values = tl.load(
            outputs_ptr + at[:, None] * HEAD_DIM + offs_d[None, :], mask=mask, other=0.0
        )
        new = tl.maximum(most, tl.max(lse, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        shrink = tl.exp(most - base)
        weights = tl.exp(lse - base)
        acc = acc * shrink + tl.sum(values.to(tl.float32) * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        most = new
    seen = total != 0  # NaN counts as seen, so that it reaches the output
    safe = tl.where(seen, total, 1.0)
    output = (acc / safe).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * HEAD_DIM + offs_d, output, mask=mask_d)
    tl.store(lse_ptr + row, tl.where(seen, most + tl.log(safe), float("-inf")))
