"""Attention over a union of key sets from attention over each."""

import triton
import triton.language as tl


@triton.jit
def _merge_states_kernel(
    outputs_ptr,  # [num_states, num_rows, HEAD_DIM], contiguous
    lses_ptr,  # float32 [num_states, num_rows]
    output_ptr,  # [num_rows, HEAD_DIM]
    lse_ptr,  # float32 [num_rows]
    num_states,
    num_rows,
    HEAD_DIM: tl.constexpr,
    TILE_D: tl.constexpr,
):
    """One program: one (token, head) row. Reads each state's LSE and output once, in order.

    Keeps a running maximum, so states may come in any order and of any size; a state with -inf is
    not read.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, TILE_D)
    mask_d = offs_d < HEAD_DIM
    most = float("-inf")
    total = 0.0
    acc = tl.zeros([TILE_D], tl.float32)
    at = row  # int64, as every sum with it
    for _ in tl.range(0, num_states):
        lse = tl.load(lses_ptr + at)
        mask = tl.where(mask_d, lse, float("-inf")) > float("-inf")
        value = tl.load(outputs_ptr + at * HEAD_DIM + offs_d, mask=mask, other=0.0)
        new = tl.maximum(most, lse)
        base = tl.where(new == float("-inf"), 0.0, new)
        shrink = tl.exp(most - base)
        weight = tl.exp(lse - base)
        acc = acc * shrink + value.to(tl.float32) * weight
        total = total * shrink + weight
        most = new
        at += num_rows
    seen = total != 0  # NaN counts as seen, so that it reaches the output
    safe = tl.where(seen, total, 1.0)
    output = (acc / safe).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * HEAD_DIM + offs_d, output, mask=mask_d)
    tl.store(lse_ptr + row, tl.where(seen, most + tl.log(safe), float("-inf")))
