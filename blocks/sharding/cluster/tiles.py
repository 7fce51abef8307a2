"""``Tiles``: how a device's processors share out a product of matrices. Needs no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, check_count, reading
from blocks.sharding.product import Product

Tile = tuple[int, int, float]
"""Rows and columns of the result that a processor works on at a time, and the share of its rate
that it reaches at it."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The shapes of tiles that kernels were written for.

    A kernel cuts the result into tiles of one shape, and every processor works on one at a time.
    What sticks out of the result, and processors that have no tile in the last wave, are time that
    computes nothing. A result of few tiles is computed in parts of the depth, which are summed
    afterwards. A library takes what is fastest.

    num_processors: of a device.
    shapes: see ``Tile``.
    parts: into how many parts the depth may be cut; the first is 1.

    >>> tiles = Tiles(80, ((128, 128, 1.0),), (1, 2))
    >>> tiles.flops(Product(1, 1024, 1280, 512)) / Product(1, 1024, 1280, 512).flops
    1.0
    >>> tiles.flops(Product(1, 1025, 1280, 512)) / Product(1, 1025, 1280, 512).flops
    1.4985...

    Reference:
        NVIDIA, "Matrix Multiplication Background User's Guide", sections on tile and wave
        quantization.
    """

    num_processors: int
    shapes: tuple[Tile, ...]
    parts: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_count("num_processors", self.num_processors)
        check(bool(self.shapes), "shapes of tiles", "at least one", "none")
        for rows, columns, share in self.shapes:
            ok = rows > 0 and columns > 0 and 0 < share <= 1
            check(ok, "tile", "rows, columns and a share of the rate", (rows, columns, share))
        rising = all(a < b for a, b in zip(self.parts, self.parts[1:], strict=False))
        check(self.parts[:1] == (1,) and rising, "parts", "1 and rising", self.parts)

    def flops(self, product: Product) -> float:
        """FLOPs that the device would get done in the time of the product; no fewer than its own.

        Larger products take no fewer.
        """
        return min(
            self._flops(product, tile, parts) for tile in self.shapes for parts in self.parts
        )

    def _flops(self, product: Product, tile: Tile, parts: int) -> float:
        """With tiles of one shape."""
        high, wide, share = tile
        depth = product.depth
        if parts > 1:  # one that is no deeper than its tile is wide writes more than it reads
            depth = max(-(-depth // parts), high, wide)
        num_tiles = -(-product.rows // high) * -(-product.columns // wide) * product.count * parts
        waves = -(-num_tiles // self.num_processors)
        return 2.0 * waves * self.num_processors * high * wide * depth / share

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Tiles":
        """
        Raises:
            ValueError: data that is no tiles.
        """
        with reading("tiles", data, cls):
            shapes = tuple((high, wide, share) for high, wide, share in data["shapes"])
            return cls(data["num_processors"], shapes, tuple(data["parts"]))
