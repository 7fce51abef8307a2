"""The work of one call, declared from shapes: the single source for benches and cost models."""

from typing import NamedTuple


class Work(NamedTuple):
    """Algorithmic minimum of one call.

    flops: floating-point operations, a multiply-add counted as two.
    bytes: bytes that must cross memory once, reads plus writes.
    """

    flops: int
    bytes: int
