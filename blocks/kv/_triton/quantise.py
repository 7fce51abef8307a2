"""fp32 to one byte an element on any chip, and the scale that fits a row."""

import triton
import triton.language as tl


@triton.jit
def to_fp8(x, HARDWARE: tl.constexpr):
    """e4m3 codes (uint8) of x: nearest, ties to even, saturated at 448; a NaN stays one.

    HARDWARE: the chip converts. The other branch is plain integer arithmetic: the carry of a
    rounded mantissa runs into the exponent, and adding 2**14 leaves a multiple of 2**-9, the step
    of the subnormals.
    """
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    if HARDWARE:
        held = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))  # keeps a NaN
        codes = held.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        held = tl.minimum(size, 0x43E00000)  # 448
        normal = ((held + 0x7FFFF + ((held >> 20) & 1)) >> 20) - 960
        small = (held.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True)
        code = tl.where(held < 0x3C800000, small - 0x46800000, normal)  # 2**-6
        code = tl.where(size > 0x7F800000, 0x7F, code)
        codes = (((bits >> 24) & 0x80) | code).to(tl.uint8)
    return codes


@triton.jit
def to_int8(x):
    """Codes (uint8) of the nearest integers, ties to even, within +-127; a NaN becomes 0.

    Adding 1.5 * 2**23 rounds, and leaves the integer in the low byte.
    """
    held = tl.where(x > 127.0, 127.0, tl.where(x < -127.0, -127.0, x))
    held = tl.where(x != x, 0.0, held)
    return (held + 12582912.0).to(tl.uint32, bitcast=True).to(tl.uint8)


@triton.jit
def largest(x):
    """Largest magnitude in each row of x, as int32 bits: they order like magnitudes, NaN on top."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)


@triton.jit
def scale_of(most, IS_INT8: tl.constexpr):
    """The scale that fits rows whose `largest` is ``most``; NaN for a row that has one."""
    held = tl.minimum(most, 0x7F7FFFFF).to(tl.float32, bitcast=True)
    scale = tl.div_rn(held, tl.full(held.shape, 127.0 if IS_INT8 else 448.0, tl.float32))
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    return tl.where(most > 0x7F800000, float("nan"), scale)


@triton.jit
def head_scales(most, scale_ptr, head_mask, DYNAMIC: tl.constexpr, IS_INT8: tl.constexpr):
    """Reciprocals of the scales of some heads; DYNAMIC measures and writes the scales first."""
    if DYNAMIC:
        scale = scale_of(most, IS_INT8)
        tl.store(scale_ptr, scale, mask=head_mask)
    else:
        scale = tl.load(scale_ptr, mask=head_mask, other=1.0)
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def codes_of(x, inverse, IS_INT8: tl.constexpr, HARDWARE: tl.constexpr):
    """Codes (uint8) of rows of x, each times its entry of ``inverse``."""
    steps = x * inverse[:, None]
    return to_int8(steps) if IS_INT8 else to_fp8(steps, HARDWARE)


@triton.jit
def store_quantised(
    x,  # [TILE_HEADS, TILE_DIM] fp32; zero where masked
    mask,
    cache_ptr,  # [TILE_HEADS, TILE_DIM] where each element goes
    scale_ptr,  # [TILE_HEADS] each head's scale
    head_mask,
    DYNAMIC: tl.constexpr, IS_INT8: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Quantise heads of one token into the cache."""
    inverse = head_scales(largest(x), scale_ptr, head_mask, DYNAMIC, IS_INT8)
    tl.store(cache_ptr, codes_of(x, inverse, IS_INT8, HARDWARE), mask=mask)
