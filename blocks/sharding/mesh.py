"""``Mesh``: ranks in a grid whose axes have names. Plain data; needs no torch."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from blocks._checks import check, check_count, fail, reading


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Ranks in a grid with named axes, the last axis counting fastest.

    axes: name of every axis.
    sizes: number of ranks along it.
    ranks: the ranks in row-major order; 0, 1, 2, ... when empty.

    >>> mesh = Mesh(("data", "tensor"), (2, 3))
    >>> mesh, mesh.coordinates(4)
    (Mesh(data=2, tensor=3), (1, 1))
    >>> mesh.groups("data"), mesh.group(4, "tensor")
    (((0, 3), (1, 4), (2, 5)), (3, 4, 5))
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        same = len(self.axes) == len(self.sizes)
        check(same, "sizes", f"one for each of the axes {self.axes}", self.sizes)
        check(len(set(self.axes)) == len(self.axes), "axes", "different names", self.axes)
        for axis, size in zip(self.axes, self.sizes, strict=True):
            check_count(f"size of axis {axis}", size)
        if not self.ranks:
            object.__setattr__(self, "ranks", tuple(range(math.prod(self.sizes))))
        count = math.prod(self.sizes)
        check(len(self.ranks) == count, "ranks", f"{count} of them", len(self.ranks))
        check(len(set(self.ranks)) == count, "ranks", "each once", self.ranks)

    @classmethod
    def of(cls, **sizes: int) -> "Mesh":
        """Ranks from 0, axes as named, the last one fastest.

        >>> Mesh.of(pipeline=2, tensor=2).ranks
        (0, 1, 2, 3)
        """
        return cls(tuple(sizes), tuple(sizes.values()))

    def __repr__(self) -> str:
        named = ", ".join(f"{a}={s}" for a, s in zip(self.axes, self.sizes, strict=True))
        if self.ranks == tuple(range(len(self.ranks))):
            return f"Mesh({named})"
        return f"Mesh({named}; ranks={list(self.ranks)})"

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    def index(self, axis: str) -> int:
        """Which axis, from 0, has this name."""
        check(axis in self.axes, "axis", f"one of {self.axes}", repr(axis))
        return self.axes.index(axis)

    def size(self, axis: str) -> int:
        """Number of ranks along an axis."""
        return self.sizes[self.index(axis)]

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Where a rank stands, one coordinate an axis."""
        place = self._places.get(rank)
        if place is None:
            raise fail("rank", f"one of {self.ranks}", rank)
        found = []
        for size in reversed(self.sizes):
            place, coordinate = divmod(place, size)
            found.append(coordinate)
        return tuple(reversed(found))

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        """Where in ``ranks`` each of them is."""
        return {rank: place for place, rank in enumerate(self.ranks)}

    def coordinate(self, rank: int, axis: str) -> int:
        """Where a rank stands along one axis."""
        return self.coordinates(rank)[self.index(axis)]

    def rank_at(self, coordinates: Iterable[int]) -> int:
        """The rank at these coordinates.

        >>> Mesh.of(data=2, tensor=3).rank_at((1, 2))
        5
        """
        given, place = tuple(coordinates), 0
        inside = len(given) == len(self.sizes) and all(
            0 <= c < s for c, s in zip(given, self.sizes, strict=True)
        )
        check(inside, "coordinates", f"one below each of {self.sizes}", given)
        for coordinate, size in zip(given, self.sizes, strict=True):
            place = place * size + coordinate
        return self.ranks[place]

    def groups(self, *axes: str) -> tuple[tuple[int, ...], ...]:
        """The ranks that differ in the coordinates of ``axes`` alone, group by group.

        Over several axes a group is in the order of the mesh, whatever order they are named in.
        """
        inner = {self.index(axis) for axis in axes}
        free = [range(size) if i in inner else (0,) for i, size in enumerate(self.sizes)]
        fixed = [(0,) if i in inner else range(size) for i, size in enumerate(self.sizes)]
        return tuple(
            tuple(
                self.rank_at(a + b for a, b in zip(base, step, strict=True))
                for step in itertools.product(*free)
            )
            for base in itertools.product(*fixed)
        )

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """Those of ``groups`` that a rank is in."""
        self.coordinates(rank)
        return next(group for group in self.groups(*axes) if rank in group)

    def at(self, **coordinates: int) -> "Mesh":
        """The part of the mesh with the named coordinates, over the axes that are left.

        >>> Mesh.of(pipeline=2, data=1, tensor=2).at(pipeline=1)
        Mesh(data=1, tensor=2; ranks=[2, 3])
        """
        for axis, coordinate in coordinates.items():
            size = self.size(axis)
            check(0 <= coordinate < size, f"coordinate of {axis}", f"below {size}", coordinate)
        kept = [axis for axis in self.axes if axis not in coordinates]
        ranks = tuple(
            rank
            for rank in self.ranks
            if all(self.coordinate(rank, axis) == c for axis, c in coordinates.items())
        )
        return Mesh(tuple(kept), tuple(self.size(axis) for axis in kept), ranks)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {key: list(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Mesh":
        """
        Raises:
            ValueError: data that is no mesh.
        """
        with reading("mesh", data, cls):
            return cls(tuple(data["axes"]), tuple(data["sizes"]), tuple(data["ranks"]))
