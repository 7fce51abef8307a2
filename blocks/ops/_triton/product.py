"""What the matrix kernels share: a product of tiles, and eight-bit floats read as numbers."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, INTERPRET: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a . b`` with float32 sums; the interpreter multiplies bf16 wrongly, so it upcasts."""
    if INTERPRET:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def decode_e4m3(bits):
    """The float16 a byte of e4m3 stands for: exact, and the same on chips without fp8.

    The exponent of float16 has one bit more and its mantissa seven: moved into place, the number
    is too small by 2**8, subnormals included.
    """
    wide = bits.to(tl.uint16)
    moved = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return moved.to(tl.float16, bitcast=True) * 256.0


@triton.jit
def encode_e4m3(x):
    """The e4m3 byte nearest to a float32 of at most 448, ties to even."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.abs(x)
    size_bits = bits & 0x7FFFFFFF
    rounded = (size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20
    small = round_to_even(size * 512.0).to(tl.uint32)  # below 2**-6 the step is 2**-9
    return (sign | tl.where(size < 0.015625, small, rounded - 960)).to(tl.uint8)


@triton.jit
def round_to_even(x):
    """The nearest whole number of a float32 below 2**22, ties to even."""
    return (x + 12582912.0) - 12582912.0
