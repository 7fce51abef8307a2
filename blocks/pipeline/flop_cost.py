"""Cost surfaces from arithmetic instead of measurements: what causal layers cost per slice.

Forward is linear layers plus attention, ``L + A``. The input gradient is ``L + 2.5 A`` (the scores
are computed again: five products of blocks against two) and the weight gradient is ``L`` alone, so
the three are equal only without context.
"""

from fractions import Fraction

from blocks._checks import check, check_positive
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.slice_time import Number, SliceTime

Multiples = tuple[Number, Number]
INPUT_GRADIENT: Multiples = (1, 2.5)
WEIGHT_GRADIENT: Multiples = (1, 0)


def flop_cost(
    hidden_size: int,
    *,
    flops_per_s: int | float,
    num_layers: int = 1,
    ffn_size: int | None = None,
    gated: bool = False,
    kv_ratio: Number = 1,
    fixed_s: Number = 0.0,
    floor: int = 0,
    element_bytes: int = 2,
    latency_s: Number = 0.0,
    bytes_per_s: int | float | None = None,
) -> CostSurface:
    """The surface of ``num_layers`` decoder layers at a constant arithmetic speed.

    Args:
        hidden_size: width d of the model.
        flops_per_s: arithmetic speed reached, a multiply-add counted as two.
        ffn_size: width of the MLP; 4 d by default.
        gated: three matrices in the MLP (SwiGLU) instead of two.
        kv_ratio: key/value heads over query heads.
        fixed_s: seconds per slice and pass of one layer whatever its length.
        floor: tokens below which the linear layers get no faster.
        element_bytes: of the hidden states that are sent.
        latency_s, bytes_per_s: of a transfer between stages; no bandwidth means that bytes are
            free.

    >>> flop_cost(8, flops_per_s=1.0).forward(1, 0)  # 24 d² + 4 d
    1568.0
    """
    for name, value in (("hidden_size", hidden_size), ("flops_per_s", flops_per_s)):
        check_positive(name, value)
    check_positive("num_layers", num_layers)
    check_positive("bytes_per_s", bytes_per_s)
    d, ffn = hidden_size, 4 * hidden_size if ffn_size is None else ffn_size
    linear = num_layers * 2 * (d * d * (2 + 2 * kv_ratio) + (2 + gated) * d * ffn) / flops_per_s
    pair = num_layers * 4 * d / flops_per_s
    fixed = num_layers * fixed_s
    forward, input_gradient, weight_gradient = (
        SliceTime(
            fixed=fixed,
            per_token=(0 if floor else multiple * linear) + attention * pair / 2,
            per_floor=multiple * linear if floor else 0,
            floor=floor,
            per_pair=attention * pair,
            per_square=attention * pair / 2,
        )
        for multiple, attention in ((1, 1), INPUT_GRADIENT, WEIGHT_GRADIENT)
    )
    return CostSurface(
        forward,
        input_gradient,
        weight_gradient,
        bytes_per_token=element_bytes * hidden_size,
        latency_s=latency_s,
        seconds_per_byte=0.0 if bytes_per_s is None else 1 / bytes_per_s,
    )


def unit_cost(
    alpha: Number,
    seq_len: int,
    *,
    input_gradient: Multiples = (1, Fraction(5, 2)),
    weight_gradient: Multiples = WEIGHT_GRADIENT,
) -> CostSurface:
    """The surface on which the forward of a whole sequence takes 1, ``alpha`` of it in attention.

    Slices cost nothing extra, transfers nothing at all, and the diagonal counts half, so that cuts
    into equal costs have a closed form. Exact where ``alpha`` is an int or a ``Fraction``.

    Args:
        input_gradient, weight_gradient: seconds as multiples of the forward's linear and attention
            part. ``(1, 1)`` for both makes a full backward twice the forward.

    >>> unit_cost(Fraction(1, 2), 4096).forward(4096, 0)
    Fraction(1, 1)
    """
    check(0 <= alpha <= 1, "alpha", "a share between 0 and 1", alpha)
    check_positive("seq_len", seq_len)
    exact = not isinstance(alpha, float)
    share = Fraction(alpha) if exact else alpha
    linear, pair = (1 - share) / seq_len, 2 * share / seq_len**2
    forward, input_pass, weight_pass = (
        SliceTime(
            per_token=multiple * linear, per_pair=attention * pair, per_square=attention * pair / 2
        )
        for multiple, attention in ((1, 1), input_gradient, weight_gradient)
    )
    return CostSurface(forward, input_pass, weight_pass)
