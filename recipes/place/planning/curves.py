"""``Curve``: SLO attainment over rate, CV, time limits and devices, as plain data."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from blocks._checks import check
from blocks.sched.placement import Placement
from recipes.place.planning.change import Change
from recipes.place.planning.replicas import replicated, swapped
from recipes.place.planning.search import QUICK, Say, find_placement
from recipes.place.planning.task import PlaceTask
from recipes.place.planning.ways import OURS, REPLICATION, SWAPPING
from recipes.place.traffic import rates_of

FACTORS = {
    "rate": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "cv": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "slo": (0.5, 0.75, 1.0, 1.5, 2.0, 4.0),
    "devices": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
}
AXES = tuple(FACTORS)


class Point(NamedTuple):
    """``attained`` by name of the way, at one value of the axis."""

    value: float
    attained: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Attainment over one axis, all else as the task has it.

    axis: one of ``AXES``. label: of the axis, with its unit.
    here: the task's own value.
    """

    axis: str
    label: str
    here: float
    points: tuple[Point, ...]

    @property
    def ways(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.points[0].attained)


def curve(
    task: PlaceTask, placement: Placement, axis: str, draw: int, say: Say = lambda line: None
) -> Curve:
    """One curve. Over rate, CV and limits the placement stays; over devices it is searched for
    anew, quickly, but for the task's own number.

    Placements are those for the traffic of the task; each point is simulated on ``draw``. Selective
    replication likewise, while swapping knows the traffic that it is simulated on.
    """
    check(axis in AXES, "axis", f"one of {AXES}", repr(axis))
    base = _here(task, axis)
    plain = replicated(task)
    points = []
    for value in _values(axis, base):
        say(f"curve over {axis}: {value:g}")
        if axis == "devices":
            points.append(Point(value, _devices(task, placement, int(value), draw)))
            continue
        factor = value / base
        other = task.at(Change(**{axis: factor}, draw=draw))
        points.append(Point(value, _attained(other, placement, plain)))
    return Curve(axis, _label(task, axis), base, tuple(points))


def curves(
    task: PlaceTask,
    placement: Placement,
    draw: int,
    axes: Iterable[str] = AXES,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Curve, ...]:
    """One for each axis."""
    return tuple(curve(task, placement, axis, draw, say) for axis in axes)


def _attained(task: PlaceTask, ours: Placement, plain: Placement) -> dict[str, float]:
    simulator = task.simulator()
    found = {
        OURS: float(simulator.run(ours).attainment),
        REPLICATION: float(simulator.run(plain).attainment),
    }
    if not task.generates:
        found[SWAPPING] = swapped(task)
    return found


def _devices(
    task: PlaceTask, placement: Placement, num_devices: int, draw: int
) -> dict[str, float]:
    other = dataclasses.replace(task, num_devices=num_devices)
    if num_devices != task.num_devices:
        placement = find_placement(other, **QUICK).placement
    return _attained(other.at(Change(draw=draw)), placement, replicated(other))


def _here(task: PlaceTask, axis: str) -> float:
    config = task.config
    if axis == "devices":
        return float(task.num_devices)
    if axis == "rate":
        drawn = config.traffic.trace is None
        return float(sum(rates_of(config).values()) if drawn else task.workload.rates().sum())
    return config.traffic.cv if axis == "cv" and _one_cv(task) else 1.0


def _one_cv(task: PlaceTask) -> bool:
    config = task.config
    return config.traffic.trace is None and all(model.cv is None for model in config.models)


def _label(task: PlaceTask, axis: str) -> str:
    return {
        "rate": "requests a second",
        "cv": "CV of the gaps" if _one_cv(task) else "CV of the gaps, times as it is",
        "slo": "time limits, times as they are",
        "devices": "devices",
    }[axis]


def _values(axis: str, base: float) -> list[float]:
    if axis != "devices":
        return [base * factor for factor in FACTORS[axis]]
    return sorted({float(max(1, math.ceil(base * factor))) for factor in FACTORS[axis]})
