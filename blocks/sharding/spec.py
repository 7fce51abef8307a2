"""``ShardingSpec``: how a tensor lies on a mesh, a placement an axis. Needs no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check, reading
from blocks.sharding.mesh import Mesh
from blocks.sharding.placement import (
    Partial,
    Placement,
    Replicate,
    Run,
    Shard,
    parse_placement,
    run_of,
)


@dataclasses.dataclass(frozen=True)
class ShardingSpec:
    """How a tensor lies on a mesh.

    mesh: of which ranks.
    placements: what each mesh axis does to the tensor, in the order of the axes. Where several
        axes shard one dim, the first cuts it and the next cut what the first left.

    >>> spec = ShardingSpec.of(Mesh.of(data=2, tensor=2), data=Shard(0), tensor=Shard(1))
    >>> print(spec)
    Spec(S(0)S(1) on Mesh(data=2, tensor=2))
    >>> spec.local_shape((5, 4), rank=3)
    (2, 2)
    """

    mesh: Mesh
    placements: tuple[Placement, ...]

    def __post_init__(self) -> None:
        count = len(self.mesh.axes)
        same = len(self.placements) == count
        check(same, "placements", f"one for each of the {count} axes", len(self.placements))
        known = all(isinstance(p, Shard | Replicate | Partial) for p in self.placements)
        check(known, "placements", "Shard, Replicate or Partial", self.placements)

    @classmethod
    def of(cls, mesh: Mesh, **placements: Placement) -> "ShardingSpec":
        """The placements of the axes named; the others replicate."""
        for axis in placements:
            mesh.index(axis)
        return cls(mesh, tuple(placements.get(axis, Replicate()) for axis in mesh.axes))

    @classmethod
    def replicated(cls, mesh: Mesh) -> "ShardingSpec":
        """The whole tensor on every rank."""
        return cls.of(mesh)

    def __str__(self) -> str:
        return f"Spec({''.join(map(str, self.placements))} on {self.mesh})"

    def placement(self, axis: str) -> Placement:
        return self.placements[self.mesh.index(axis)]

    def replace(self, axis: str, placement: Placement) -> "ShardingSpec":
        """The same but for one axis."""
        index = self.mesh.index(axis)
        changed = (*self.placements[:index], placement, *self.placements[index + 1 :])
        return ShardingSpec(self.mesh, changed)

    def axes_of(self, dim: int) -> tuple[str, ...]:
        """The axes that shard a tensor dim, outermost first."""
        pairs = zip(self.mesh.axes, self.placements, strict=True)
        return tuple(axis for axis, placement in pairs if placement == Shard(dim))

    @property
    def has_partial(self) -> bool:
        return any(isinstance(placement, Partial) for placement in self.placements)

    def runs(self, shape: Sequence[int], rank: int) -> tuple[Run, ...]:
        """The part of every dim that a rank holds.

        Raises:
            ValueError: a sharded dim that the shape does not have; a rank outside the mesh.
        """
        runs = [Run(0, size) for size in shape]
        coordinates = self.mesh.coordinates(rank)
        for placement, size, at in zip(self.placements, self.mesh.sizes, coordinates, strict=True):
            if isinstance(placement, Shard):
                dim = placement.dim
                check(dim < len(runs), "sharded dim", f"below {len(runs)}, the dims there are", dim)
                start, part = runs[dim].start, run_of(runs[dim].size, size, at)
                runs[dim] = Run(start + part.start, start + part.stop)
        return tuple(runs)

    def local_shape(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """Shape of what a rank holds of a tensor of ``shape``."""
        return tuple(run.size for run in self.runs(shape, rank))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {"mesh": self.mesh.to_json(), "placements": [str(p) for p in self.placements]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardingSpec":
        """
        Raises:
            ValueError: data that is no spec.
        """
        with reading("spec", data, {"mesh", "placements"}):
            placements = tuple(parse_placement(text) for text in data["placements"])
            return cls(Mesh.from_json(data["mesh"]), placements)
