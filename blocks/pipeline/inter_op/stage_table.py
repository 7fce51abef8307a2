"""``StageTable``: what every run of layers costs as a stage. Plain data; needs numpy, no torch."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from blocks._checks import check, fail, reading
from blocks.pipeline.inter_op.submesh import SubmeshShape


class StageCost(NamedTuple):
    """What one stage takes, on each of its devices.

    forward_s: seconds of a microbatch's forward.
    backward_s: of its backward; where ``weight_s`` is given, of the gradients of inputs alone.
        Recomputation, where the option has it, is part of it.
    weight_s: of the gradients of weights. Schedules that do not split backwards add both.
    once_s: of what is done once a step: reducing gradients, the optimizer, gathering parameters.
    fixed_bytes: parameters, gradients, optimizer state.
    microbatch_bytes: kept for every microbatch from its forward to its backward.
    transient_bytes: needed beside these while computing.
    """

    forward_s: float
    backward_s: float
    weight_s: float = 0.0
    once_s: float = 0.0
    fixed_bytes: float = 0.0
    microbatch_bytes: float = 0.0
    transient_bytes: float = 0.0


StageCosts = Callable[[int, int, SubmeshShape, str], StageCost | None]
"""Of the layers ``first`` up to ``stop`` on a submesh with an option; None where there is none."""

Transfer = Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]]
"""Seconds of the outputs, and of their gradients back, over the boundary before layer ``k``."""


@runtime_checkable
class StageSource(Protocol):
    """Whatever knows what stages cost: a ``StageTable``, ``LazyStages`` or ``LayerSums``."""

    @property
    def num_layers(self) -> int: ...

    @property
    def shapes(self) -> tuple[SubmeshShape, ...]: ...

    def at(self, bounds: Sequence[int]) -> "StageTable":
        """The table of stages that begin and end at ``bounds``, from 0 to the number of layers."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StageTable:
    """What every run of layers costs as a stage, on every submesh and with every option.

    An option is any way to run a stage: a logical mesh, a choice of placements, recomputation.

    bounds: layers at which stages may begin or end, from 0 to the number of layers.
    shapes: submeshes a stage may have.
    options: names of the ways a stage may be run.
    cells: the seven numbers of ``StageCost`` by name, each float64 ``[first, stop, shape, option]``
        with indices into ``bounds``, ``shapes``, ``options``; an infinite ``forward_s`` says there
        is no such stage.
    send_s, return_s: seconds of outputs, and of their gradients back, across a boundary,
        ``[bound, shape before, shape after]``.
    """

    bounds: tuple[int, ...]
    shapes: tuple[SubmeshShape, ...]
    options: tuple[str, ...]
    cells: Mapping[str, Any]
    send_s: Any
    return_s: Any

    def __post_init__(self) -> None:
        import numpy as np

        num_bounds, num_shapes = len(self.bounds), len(self.shapes)
        shape = (num_bounds, num_bounds, num_shapes, len(self.options))
        check(set(self.cells) == set(StageCost._fields), "cells", StageCost._fields, [*self.cells])
        used = self.exists
        for name, values in self.cells.items():
            check(values.shape == shape, f"shape of {name}", shape, values.shape)
            fine = bool((values[used] >= 0).all() and np.isfinite(values[used]).all())
            check(fine, name, "numbers of at least 0", "others")
        for name in ("send_s", "return_s"):
            values = getattr(self, name)
            wanted = (num_bounds, num_shapes, num_shapes)
            check(values.shape == wanted, f"shape of {name}", wanted, values.shape)
            check(bool((values >= 0).all()), name, "numbers of at least 0", "others")
        check_bounds(self.bounds, self.bounds[-1])
        distinct = len(set(self.shapes)) == num_shapes and len(set(self.options)) == shape[-1]
        check(distinct, "shapes and options", "each once", (self.shapes, self.options))

    @property
    def num_layers(self) -> int:
        return self.bounds[-1]

    @functools.cached_property
    def exists(self) -> Any:
        """Which stages there are, ``[first, stop, shape, option]``."""
        import numpy as np

        return np.isfinite(self.cells["forward_s"])

    @functools.cached_property
    def filled(self) -> dict[str, Any]:
        """``cells`` with zeros where there is no stage."""
        import numpy as np

        return {name: np.where(self.exists, v, 0.0) for name, v in self.cells.items()}

    @functools.cached_property
    def whole_s(self) -> Any:
        """Seconds of all passes of a microbatch; zero where there is no stage."""
        cells = self.filled
        return cells["forward_s"] + cells["backward_s"] + cells["weight_s"]

    @classmethod
    def evaluate(
        cls,
        bounds: Sequence[int],
        shapes: Sequence[SubmeshShape],
        options: Sequence[str],
        stage: StageCosts,
        *,
        transfer: Transfer | None = None,
    ) -> "StageTable":
        """The table of what ``stage`` says of every run between ``bounds``."""
        import numpy as np

        count = len(bounds)
        cells = {
            name: np.full((count, count, len(shapes), len(options)), np.inf)
            for name in StageCost._fields
        }
        for i, first in enumerate(bounds):
            for j in range(i + 1, count):
                for m, shape in enumerate(shapes):
                    for o, option in enumerate(options):
                        cost = stage(first, bounds[j], shape, option)
                        if cost is not None:
                            for name, value in zip(StageCost._fields, cost, strict=True):
                                cells[name][i, j, m, o] = value
        sends = transfers(bounds, shapes, transfer)
        return cls(tuple(bounds), tuple(shapes), tuple(options), cells, *sends)

    def at(self, bounds: Sequence[int]) -> "StageTable":
        """The same for stages that begin and end at ``bounds`` only.

        Raises:
            ValueError: bounds this table does not have.
        """
        check_bounds(bounds, self.num_layers)
        known = {bound: index for index, bound in enumerate(self.bounds)}
        check(set(bounds) <= set(known), "bounds", f"some of {self.bounds}", tuple(bounds))
        if tuple(bounds) == self.bounds:
            return self
        kept = [known[bound] for bound in bounds]
        cells = {name: values[kept][:, kept] for name, values in self.cells.items()}
        sends = (self.send_s[kept], self.return_s[kept])
        return StageTable(tuple(bounds), self.shapes, self.options, cells, *sends)

    def cost(self, first: int, stop: int, shape: int, option: int) -> StageCost:
        """Of the stage between two bounds; all four are indices."""
        cells = (self.cells[name][first, stop, shape, option] for name in StageCost._fields)
        return StageCost(*map(float, cells))

    def to_json(self) -> dict[str, Any]:
        """Plain data, stages that exist only; ``from_json`` reads it back."""
        import numpy as np

        where = np.argwhere(np.isfinite(self.cells["forward_s"])).tolist()
        return {
            "bounds": list(self.bounds),
            "shapes": [list(shape) for shape in self.shapes],
            "options": list(self.options),
            "stages": [[*index, *self.cost(*index)] for index in where],
            "send_s": self.send_s.tolist(),
            "return_s": self.return_s.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "StageTable":
        """
        Raises:
            ValueError: data that is no table.
        """
        import numpy as np

        with reading("stage table", data, {*_JSON}):
            bounds, options = tuple(data["bounds"]), tuple(data["options"])
            shapes = tuple(SubmeshShape(*shape) for shape in data["shapes"])
            size = (len(bounds), len(bounds), len(shapes), len(options))
            cells = {name: np.full(size, np.inf) for name in StageCost._fields}
            for first, stop, shape, option, *cost in data["stages"]:
                for name, value in zip(StageCost._fields, cost, strict=True):
                    cells[name][first, stop, shape, option] = value
            sends = (np.asarray(data[name], float) for name in ("send_s", "return_s"))
            return cls(bounds, shapes, options, cells, *sends)


_JSON = ("bounds", "shapes", "options", "stages", "send_s", "return_s")


def transfers(
    bounds: Sequence[int], shapes: Sequence[SubmeshShape], transfer: Transfer | None
) -> tuple[Any, Any]:
    """``send_s`` and ``return_s`` of a table; zeros where there is no ``transfer``."""
    import numpy as np

    found = np.zeros((2, len(bounds), len(shapes), len(shapes)))
    if transfer is not None:
        for k in range(1, len(bounds) - 1):
            for a, before in enumerate(shapes):
                for b, after in enumerate(shapes):
                    found[:, k, a, b] = transfer(bounds[k], before, after)
    return found[0], found[1]


def check_bounds(bounds: Sequence[int], num_layers: int) -> None:
    """
    Raises:
        ValueError: bounds that do not ascend from 0 to ``num_layers``.
    """
    ascending = all(a < b for a, b in itertools.pairwise(bounds))
    whole = len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == num_layers
    if not (ascending and whole):
        raise fail("bounds", f"layers ascending from 0 to {num_layers}", tuple(bounds))
