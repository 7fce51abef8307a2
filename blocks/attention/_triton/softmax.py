"""The online-softmax step all attention kernels share."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, INTERPRET: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a . b`` with float32 sums.

    The interpreter multiplies bf16 wrongly, and numpy's float32 products depend on where a row
    lies, which no chip's do: it multiplies in float64 and rounds.
    """
    if INTERPRET:
        sums = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return acc + sums.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def base2_scores(
    products,
    scale,
    softcap,
    slopes,
    distance,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
):
    """Products [rows, keys] to base-2 exponents: scale, softcap, ALiBi, in this order.

    tanh is written out because the interpreter has no libdevice; its argument is cut where the
    result is 1 anyway, so that exp2 stays finite; a NaN is not cut.
    """
    log2e: tl.constexpr = 1.4426950408889634
    scores = products * scale
    if HAS_SOFTCAP:
        doubled = tl.minimum(
            scores * (2 * log2e / softcap), 126.0, propagate_nan=tl.PropagateNan.ALL
        )
        scores = softcap * (1 - 2 / (tl.exp2(doubled) + 1))
    if HAS_SLOPES:
        scores -= slopes[:, None] * tl.abs(distance).to(tl.float32)
    return scores * log2e


@triton.jit
def softmax_step(scores, m_i, l_i, acc):
    """Fold one tile of base-2 scores (masked with -inf) into a row's maximum, sum and output.

    Rows that have seen no key keep m_i = -inf, l_i = 0: the maximum is replaced by 0 before it is
    subtracted, so -inf minus -inf is never computed.
    """
    m_new = tl.maximum(m_i, tl.max(scores, 1))
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(m_i - base)
    return weights, m_new, l_i * shrink + tl.sum(weights, 1), acc * shrink[:, None]


@triton.jit
def normalise(m_i, l_i, acc):
    """Final output and natural-log LSE; zeros and -inf for rows that saw no key."""
    ln2: tl.constexpr = 0.6931471805599453
    seen = l_i != 0  # NaN counts as seen, so that it reaches the output
    safe = tl.where(seen, l_i, 1.0)
    output = acc / safe[:, None]
    lse = tl.where(seen, (m_i + tl.log2(safe)) * ln2, float("-inf"))
    return output, lse
