"""``StagePlan``, ``Pattern``, ``Boundary``: the parts of a parallel plan. Need no torch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from blocks._checks import check, check_count, reading
from blocks.sharding import Mesh, Placement, parse_placement
from recipes.plan.prediction import StagePrediction

Placements = tuple[Placement, ...]
"""One for each axis of a mesh."""

MAX_RUN = 1_000_000
"""Devices of a run; a file that says more is damaged."""


class ParameterPlacement(NamedTuple):
    """How a parameter lies between steps, how its gradient is summed, how the optimizer runs.

    parameter, gradient, optimizer: texts of placements, one for each mesh axis: ``S(0)R``.
    """

    parameter: str
    gradient: str
    optimizer: str


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How the operations of one layer are spread; repeated layers share one.

    choices: by the name of a node within its layer (``node_names``) its choices as
        ``choice_text`` writes them.
    parameters: by the parameter's name, ``*`` for the number of a repeated block.
    """

    choices: Mapping[str, str]
    parameters: Mapping[str, ParameterPlacement]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        parameters = {name: " / ".join(places) for name, places in self.parameters.items()}
        return {"parameters": parameters, "choices": dict(self.choices)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Pattern":
        """
        Raises:
            ValueError: data that is no pattern.
        """
        with reading("pattern", data, cls):
            parameters = {
                name: ParameterPlacement(*text.split(" / "))
                for name, text in data["parameters"].items()
            }
            return cls(dict(data["choices"]), parameters)


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage: which layers, on which devices, how.

    first, stop: its layers, half open.
    mesh: its devices as a grid; ranks are the numbers of the cluster's devices.
    recompute: whether the forward is repeated before the backward, only its inputs being kept.
    patterns: runs of layers ``(first, stop, name of the pattern)`` that cover the stage in order.
    predicted: what it takes and holds.
    """

    first: int
    stop: int
    mesh: Mesh
    recompute: bool
    patterns: tuple[tuple[int, int, str], ...]
    predicted: StagePrediction

    def __post_init__(self) -> None:
        check(0 <= self.first < self.stop, "layers", "at least one", (self.first, self.stop))
        again = self.recompute
        check(isinstance(again, bool), "recompute of a stage", "true or false", repr(again))
        at = self.first
        for first, stop, _ in self.patterns:
            check(first == at < stop, "patterns of a stage", f"one from layer {at}", (first, stop))
            at = stop
        check(at == self.stop, "patterns of a stage", f"all layers to {self.stop}", at)

    @property
    def num_layers(self) -> int:
        return self.stop - self.first

    def pattern_of(self, layer: int) -> str:
        """Name of the pattern that a layer follows."""
        inside = self.first <= layer < self.stop
        check(inside, "layer", f"{self.first} to {self.stop - 1}", layer)
        return next(name for first, stop, name in self.patterns if first <= layer < stop)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {
            "layers": [self.first, self.stop],
            "mesh": dict(zip(self.mesh.axes, self.mesh.sizes, strict=True)),
            "devices": runs_text(self.mesh.ranks),
            "recompute": self.recompute,
            "patterns": [list(run) for run in self.patterns],
            "predicted": self.predicted.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StagePlan":
        """
        Raises:
            ValueError: data that is no stage.
        """
        keys = ("layers", "mesh", "devices", "recompute", "patterns", "predicted")
        with reading("stage plan", data, keys):
            check(len(data["layers"]) == 2, "layers", "the first and where to stop", data["layers"])
            first, stop = data["layers"]
            sizes = data["mesh"]
            ranks = parse_runs(data["devices"])
            check_count("devices", math.prod(sizes.values()))
            return cls(
                *(first, stop, Mesh(tuple(sizes), tuple(sizes.values()), ranks)),
                data["recompute"],
                tuple((first, stop, name) for first, stop, name in data["patterns"]),
                StagePrediction.from_json(data["predicted"]),
            )


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A tensor that goes from one stage to another.

    value: name of the node that makes it, as patterns have it, with the number of its block.
    phase: of which pass.
    source, target: stages.
    placements: how it lies on the source's mesh and on the target's.
    num_bytes: of the whole tensor.
    seconds: predicted, each time it goes.
    once: whether it goes once a step: a parameter with the first microbatch, the sum of a gradient
        with the last; anything else goes with every one.
    """

    value: str
    phase: str
    source: int
    target: int
    placements: tuple[Placements, Placements]
    num_bytes: int
    seconds: float
    once: bool = False

    def __post_init__(self) -> None:
        check(isinstance(self.once, bool), "once of a boundary", "true or false", repr(self.once))

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        texts = [placements_text(placements) for placements in self.placements]
        said = dataclasses.asdict(self) | {"placements": texts}
        return said if self.once else {key: said[key] for key in said if key != "once"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Boundary":
        """
        Raises:
            ValueError: data that is no boundary.
        """
        if isinstance(data, Mapping):
            data = {"once": False, **data}
        with reading("boundary", data, cls):
            source, target = data["placements"]
            both = (parse_placements(source), parse_placements(target))
            return cls(**{**data, "placements": both})


LETTERS = (
    "a letter for each axis of the mesh: R the whole on every device, S(0) cut along dim 0, "
    "P(sum) addends of a sum"
)
"""What texts of placements say, for people."""


def placements_text(placements: Placements) -> str:
    """
    >>> placements_text(parse_placements("S(0)RP(sum)"))
    'S(0)RP(sum)'
    """
    return "".join(map(str, placements))


def parse_placements(text: str) -> Placements:
    """
    Raises:
        ValueError: a text that is no row of placements.
    """
    parts = text.replace("S", " S").replace("R", " R").replace("P", " P").split()
    return tuple(map(parse_placement, parts))


def runs_text(numbers: tuple[int, ...]) -> str:
    """Numbers with runs written as their ends.

    >>> runs_text((0, 1, 2, 8, 9, 4)), parse_runs("0-2,8-9,4")
    ('0-2,8-9,4', (0, 1, 2, 8, 9, 4))
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in parts)


def parse_runs(text: str) -> tuple[int, ...]:
    """
    Raises:
        ValueError: a text that is none of ``runs_text``.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ok = first.isdigit() and (last or first).isdigit()
        check(ok, "devices", "numbers and runs such as 0-7,9", repr(text))
        length = int(last or first) - int(first) + 1
        check(0 < length <= MAX_RUN, "devices", f"runs of 1 to {MAX_RUN}", repr(part))
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
