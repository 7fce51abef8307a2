"""Counter-based random bits: a pure function of (seed, position, token id), the same in every impl.

Each (seed, position) pair starts a SplitMix64 stream and a token id is its place in that stream, so
any token's number can be computed alone, in any order and in any batch.

Reference: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 4
(the generator), with the finaliser of Stafford (variant 13).
"""

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # all constants as signed 64-bit numbers
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Numbers in (0, 1), fp32, from int64 tensors that broadcast together.

    Small numbers keep full relative precision down to 2**-33, which is the rarest event a draw can
    tell apart.
    """
    stream = _mix(_mix(seeds + GOLDEN) + positions * GOLDEN)
    bits = _mix(stream + (token_ids + 1) * GOLDEN)
    top = _shift_right(bits, 32)  # [0, 2**32)
    return ((top.double() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24).float()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, count: int) -> Tensor:
    return (x >> count) & ((1 << (64 - count)) - 1)  # int64 shifts in the sign; mask it away
