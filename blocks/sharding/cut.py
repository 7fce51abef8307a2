"""``Cut``: which runs of a tensor dim every rank of a group holds. Needs no torch."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check, reading
from blocks.sharding.placement import Run, run_of


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which runs of a dim every rank of a group holds, one behind another.

    Says what ``Shard`` does not: matrices made of parts that are cut each for itself (query, key
    and value in one), and runs that several ranks hold. Together the ranks hold all of the dim.
    Ranks that hold a run together use it for different work: their gradients of it are addends.

    dim: of the tensor. size: of the whole.
    runs: for every rank its runs, none empty.

    >>> two = Cut.of_parts(0, [Cut.even(0, 4, 2), Cut.even(0, 2, 2)])  # 4 rows, then 2, by halves
    >>> two.runs[1], two.local_size(1)
    ((Run(start=2, stop=4), Run(start=5, stop=6)), 3)
    """

    dim: int
    size: int
    runs: tuple[tuple[Run, ...], ...]

    def __post_init__(self) -> None:
        check(self.dim >= 0, "dim", "a tensor dim from 0", self.dim)
        end = 0
        for run in sorted(set(itertools.chain(*self.runs))):
            check(run.start < run.stop <= self.size, "run", f"inside of {self.size}", run)
            hint = "runs are equal or apart, and leave nothing out"
            check(run.start == end, "runs", f"one from {end} on", run, hint)
            end = run.stop
        check(end == self.size, "runs", f"all of 0 to {self.size}", f"nothing from {end} on")

    @classmethod
    def even(cls, dim: int, size: int, num_ranks: int) -> "Cut":
        """What ``Shard(dim)`` does."""
        runs = (run_of(size, num_ranks, rank) for rank in range(num_ranks))
        return cls(dim, size, tuple((run,) if run.size else () for run in runs))

    @classmethod
    def whole(cls, dim: int, size: int, num_ranks: int) -> "Cut":
        """Everything on every rank, gradients being addends."""
        return cls(dim, size, ((Run(0, size),),) * num_ranks)

    @classmethod
    def of_units(cls, dim: int, unit: int, held: Sequence[Sequence[int]]) -> "Cut":
        """Every rank holds the units numbered so, each ``unit`` long.

        >>> Cut.of_units(0, 64, [[0], [0]]).runs
        ((Run(start=0, stop=64),), (Run(start=0, stop=64),))
        """
        size = unit * (max(itertools.chain(*held)) + 1)
        runs = (tuple(Run(u * unit, u * unit + unit) for u in units) for units in held)
        return cls(dim, size, tuple(runs))

    @classmethod
    def of_parts(cls, dim: int, parts: Sequence["Cut"]) -> "Cut":
        """Parts that lie behind one another in the whole, and in what every rank holds."""
        starts = list(itertools.accumulate((part.size for part in parts), initial=0))
        runs = []
        for rank in range(len(parts[0].runs)):
            moved = (
                Run(run.start + start, run.stop + start)
                for part, start in zip(parts, starts[:-1], strict=True)
                for run in part.runs[rank]
            )
            runs.append(tuple(moved))
        return cls(dim, starts[-1], tuple(runs))

    @property
    def num_ranks(self) -> int:
        return len(self.runs)

    def local_size(self, rank: int) -> int:
        """Size of the dim in what a rank holds."""
        return sum(run.size for run in self.runs[rank])

    def local_shape(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """Shape of what a rank holds of a tensor of ``shape``."""
        check(shape[self.dim] == self.size, f"dim {self.dim}", self.size, shape[self.dim])
        return (*shape[: self.dim], self.local_size(rank), *shape[self.dim + 1 :])

    def shared(self) -> dict[Run, list[tuple[int, int]]]:
        """The runs that are held more than once: for each the (rank, offset in what it holds)."""
        places: dict[Run, list[tuple[int, int]]] = {}
        for rank, runs in enumerate(self.runs):
            offset = 0
            for run in runs:
                places.setdefault(run, []).append((rank, offset))
                offset += run.size
        return {run: held for run, held in places.items() if len(held) > 1}

    def owned(self, rank: int) -> tuple[Run, ...]:
        """Ranges of what a rank holds that no rank before it holds: together everything once."""
        seen = set(itertools.chain(*self.runs[:rank]))
        found, offset = [], 0
        for run in self.runs[rank]:
            if run not in seen:
                found.append(Run(offset, offset + run.size))
            seen.add(run)
            offset += run.size
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        runs = [[list(run) for run in held] for held in self.runs]
        return {"dim": self.dim, "size": self.size, "runs": runs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Cut":
        """
        Raises:
            ValueError: data that is no cut.
        """
        with reading("cut", data, {"dim", "size", "runs"}):
            runs = tuple(tuple(Run(*run) for run in held) for held in data["runs"])
            return cls(data["dim"], data["size"], runs)
