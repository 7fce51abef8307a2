"""``DeviceKind``: what a device computes, holds and reads in a second. Needs no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, check_positive, fail, reading
from blocks.sharding.cluster.curve import Curve, Number
from blocks.sharding.cluster.sources import check_sources
from blocks.sharding.cluster.tiles import Tiles
from blocks.sharding.product import Product

_OPTIONAL = ("hides", "touched_per_s", "tiles")
"""Fields that files leave out where there is nothing to say; else they have a source."""


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """What one device can do: a roofline, or measured curves in place of it.

    name: as its maker calls it.
    peak_flops: FLOP/s for every dtype (as torch names it) that it multiplies matrices in.
    achieved: for each of them the share of the peak that large multiplications reach.
    memory_bytes: what a plan may use.
    memory_bytes_per_s: what operations that only read and write reach.
    launch_s: least time of any operation.
    sources: for each of the numbers above where it comes from.
    multiplications: for dtypes that were measured, seconds over FLOPs; they go before the peak.
    elementwise: where it was measured, seconds over the bytes read and written; it goes before the
        bandwidth, which is that of large tensors: small ones stay in caches.
    overlaps: whether arithmetic hides what its operation reads and writes, as with copies that run
        beside it; without them an operation takes both times.
    hides: dtypes whose arithmetic does so even where that of others does not.
    touched_per_s: for dtypes whose operations reach another rate than ``memory_bytes_per_s``.
    tiles: for dtypes of which they are known, the tiles that products are computed in; without
        them every product takes the time of its arithmetic.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> kind = bundled_cluster("8xA100").kinds[0]
    >>> round(kind.flops_s(10**12, "bfloat16") * 1e3, 2), kind.flops_s(0, "int64")
    (4.58, 0.0)
    """

    name: str
    peak_flops: Mapping[str, Number] = dataclasses.field(hash=False)
    achieved: Mapping[str, Number] = dataclasses.field(hash=False)
    memory_bytes: int
    memory_bytes_per_s: Number
    launch_s: Number
    sources: Mapping[str, str] = dataclasses.field(hash=False)
    multiplications: Mapping[str, Curve] = dataclasses.field(default_factory=dict, hash=False)
    elementwise: Curve | None = None
    overlaps: bool = True
    hides: tuple[str, ...] = ()
    touched_per_s: Mapping[str, Number] = dataclasses.field(default_factory=dict, hash=False)
    tiles: Mapping[str, Tiles] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for dtype, peak in self.peak_flops.items():
            check_positive(f"peak_flops of {dtype}", peak)
        same = sorted(self.achieved) == sorted(self.peak_flops)
        check(same, "achieved", f"a share for each of {sorted(self.peak_flops)}", self.achieved)
        for dtype, share in self.achieved.items():
            check(0 < share <= 1, f"achieved of {dtype}", "a share of the peak", share)
        for name in ("memory_bytes", "memory_bytes_per_s"):
            check_positive(f"{name} of {self.name}", getattr(self, name))
        check(self.launch_s >= 0, f"launch_s of {self.name}", "0 or more", self.launch_s)
        for dtype, rate in self.touched_per_s.items():
            check_positive(f"touched_per_s of {dtype}", rate)
        self._check_used()
        named = ["peak_flops", "achieved", "memory_bytes", "memory_bytes_per_s", "launch_s"]
        named += [name for name in _OPTIONAL if getattr(self, name)]
        check_sources(self.name, self.sources, named)

    def _check_used(self) -> None:
        """No dtype is misspelt, and no rate goes unused."""
        known = {*self.peak_flops, *self.multiplications}
        for name in ("hides", "tiles"):
            others = sorted({*getattr(self, name)} - known)
            check(not others, f"{name} of {self.name}", f"dtypes of {sorted(known)}", others)
        rates = {} if self.elementwise is None else dict(self.touched_per_s)
        check(not rates, f"touched_per_s of {self.name}", "none: elementwise says", rates)

    def flops_s(self, flops: Number, dtype: str) -> float:
        """Seconds of the arithmetic of one operation, without what it reads and writes.

        Raises:
            ValueError: arithmetic in a dtype that neither was measured nor has a peak.
        """
        if not flops:
            return 0.0
        if (curve := self.multiplications.get(dtype)) is not None:
            return curve(flops)
        if dtype not in self.peak_flops:
            known = sorted({*self.peak_flops, *self.multiplications})
            raise fail("dtype", f"one of {known}", repr(dtype), f"add it to kind {self.name}")
        return flops / (self.peak_flops[dtype] * self.achieved[dtype])

    def memory_s(self, num_bytes: Number, dtype: str = "") -> float:
        """Seconds to read and write so much, in an operation that makes numbers of a dtype."""
        if self.elementwise is not None:
            return self.elementwise(num_bytes) if num_bytes else 0.0
        return num_bytes / self.touched_per_s.get(dtype, self.memory_bytes_per_s)

    def product_s(self, product: Product, num_bytes: Number, dtype: str) -> float:
        """``op_s`` of products of matrices, in tiles where they are known."""
        tiles = self.tiles.get(dtype)
        flops = product.flops if tiles is None else tiles.flops(product)
        return self.op_s(flops, num_bytes, dtype)

    def op_s(self, flops: Number, num_bytes: Number, dtype: str) -> float:
        """Seconds of one operation: arithmetic and memory, the longer one where they overlap, and
        the launch."""
        both = self.flops_s(flops, dtype), self.memory_s(num_bytes, dtype)
        overlaps = self.overlaps or dtype in self.hides
        return (max(both) if overlaps else sum(both)) + self.launch_s

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        fields = dataclasses.asdict(self) | {
            "multiplications": {d: curve.to_json() for d, curve in self.multiplications.items()},
            "elementwise": None if self.elementwise is None else self.elementwise.to_json(),
            "hides": list(self.hides),
            "tiles": {dtype: tiles.to_json() for dtype, tiles in self.tiles.items()},
        }
        left_out = [name for name in _OPTIONAL if not fields[name]]
        return {name: value for name, value in fields.items() if name not in left_out}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DeviceKind":
        """
        Raises:
            ValueError: data that is no device kind.
        """
        data = {"overlaps": True, "hides": [], "touched_per_s": {}, "tiles": {}, **data}
        with reading("device kind", data, cls):
            curves = data["multiplications"].items()
            measured = {dtype: Curve.from_json(curve) for dtype, curve in curves}
            touched = data["elementwise"]
            elementwise = None if touched is None else Curve.from_json(touched)
            tiles = {dtype: Tiles.from_json(each) for dtype, each in data["tiles"].items()}
            curves = {"multiplications": measured, "elementwise": elementwise}
            hides = tuple(data["hides"])
            return cls(**{**data, **curves, "hides": hides, "tiles": tiles})
