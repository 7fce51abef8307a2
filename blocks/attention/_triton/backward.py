"""What both halves of the backward share: delta, and weights recomputed from the LSE."""

import triton
import triton.language as tl


@triton.jit
def _delta_kernel(
    grad_output_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    output_ptr,  # the same, contiguous
    grad_lse_ptr,  # float32 [num_tokens, num_heads] when HAS_GRAD_LSE
    delta_ptr,  # float32 [num_tokens, num_heads]
    num_rows, num_heads, stride_do_token, stride_do_head,
    HEAD_DIM: tl.constexpr, TILE_R: tl.constexpr, TILE_D: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """``delta = sum(grad_output * output) - grad_lse`` of TILE_R rows (token, head).

    The gradient of a score is ``weight * (grad_output . value - delta)``, sinks and the gradient
    that flows into the LSE included.
    """
    offs_row = tl.program_id(0).to(tl.int64) * TILE_R + tl.arange(0, TILE_R)
    offs_d = tl.arange(0, TILE_D)
    mask_row = offs_row < num_rows
    mask = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    do_rows = offs_row // num_heads * stride_do_token + offs_row % num_heads * stride_do_head
    do = tl.load(grad_output_ptr + do_rows[:, None] + offs_d[None, :], mask=mask, other=0.0)
    o = tl.load(output_ptr + offs_row[:, None] * HEAD_DIM + offs_d[None, :], mask=mask, other=0.0)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + offs_row, mask=mask_row, other=0.0)
    tl.store(delta_ptr + offs_row, delta, mask=mask_row)


@triton.jit
def load_lse(lse_ptr, rows, mask_row):
    """LSE of rows in base 2; inf where a row is padding or saw no key.

    An infinite LSE makes every weight of its row 0, so neither kernel masks rows again.
    """
    lse = tl.load(lse_ptr + rows, mask=mask_row, other=float("inf")) * 1.4426950408889634
    return tl.where(lse == float("-inf"), float("inf"), lse)


@triton.jit
def weights_of(
    products, lse, scale, softcap, slopes, distance,
    HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr,
):  # fmt: skip
    """Softmax weights from products, and the derivative of a score by ``scale * product``.

    ``lse`` (base 2) and ``slopes`` broadcast over ``products``. As in ``base2_scores``, tanh is
    written out and its argument cut where the result is 1 anyway.
    """
    log2e: tl.constexpr = 1.4426950408889634
    bent = 1.0
    if HAS_SOFTCAP or HAS_SLOPES:
        scores = products * scale
        if HAS_SOFTCAP:
            doubled = tl.minimum(
                scores * (2 * log2e / softcap), 126.0, propagate_nan=tl.PropagateNan.ALL
            )
            tanh = 1 - 2 / (tl.exp2(doubled) + 1)
            bent = 1 - tanh * tanh
            scores = softcap * tanh
        if HAS_SLOPES:
            scores -= slopes * tl.abs(distance).to(tl.float32)
        exponents = scores * log2e
    else:
        exponents = products * (scale * log2e)
    return tl.exp2(exponents - lse), bent
