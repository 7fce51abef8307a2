"""``Product``: an operation as products of matrices, as its kernels compute it. No torch."""

from typing import NamedTuple


class Product(NamedTuple):
    """So many products of ``[rows, depth]`` and ``[depth, columns]``.

    A convolution is one too: rows are images and places, columns output channels, and its depth
    input channels and taps of the kernel.

    >>> Product(2, 8, 4, 6).flops
    768

    Reference:
        NVIDIA, "Convolutional Layers User's Guide", section on implicit GEMM.
    """

    count: int
    rows: int
    columns: int
    depth: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition for every point."""
        return 2 * self.count * self.rows * self.columns * self.depth
