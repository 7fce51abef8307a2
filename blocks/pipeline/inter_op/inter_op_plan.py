"""``InterOpPlan``: stages on submeshes and the schedule that runs them. Needs no torch."""

import dataclasses
from typing import Any

from blocks._checks import reading
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.inter_op.makespans import program
from blocks.pipeline.inter_op.stage_table import StageCost
from blocks.pipeline.inter_op.submesh import SubmeshShape
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import simulate
from blocks.pipeline.timeline import Timeline


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """Contiguous layers on one submesh.

    first, stop: its layers.
    shape: of its submesh.
    devices: of its submesh; device ``d`` of host ``h`` is ``h * devices_per_host + d``.
    option: how it is run: a name of the table's options.
    cost: what the table says of it.
    in_flight: microbatches it holds at most.
    send_s, return_s: seconds of its outputs to the next stage, of their gradients back.
    """

    first: int
    stop: int
    shape: SubmeshShape
    devices: tuple[int, ...]
    option: str
    cost: StageCost
    in_flight: int
    send_s: float
    return_s: float

    @property
    def peak_bytes(self) -> float:
        """Most bytes on each of its devices."""
        held = self.cost.microbatch_bytes * self.in_flight
        return self.cost.fixed_bytes + self.cost.transient_bytes + held


@dataclasses.dataclass(frozen=True)
class InterOpPlan:
    """Stages, schedule and number of microbatches, with the step's time and how good it is.

    stages: in the order data flows.
    schedule: name of the family.
    num_microbatches: of a step.
    makespan_s: simulated seconds of a step: the schedule, transfers between stages, and what is
        done once a step after a stage's last action.
    formula_s: seconds by the closed formula, see ``closed_formula``.
    bound_s: no partition, schedule or number of microbatches that was allowed takes less by the
        same simulation, on the grid of ``granularity``.
    granularity: stretches between bounds of the table that were one in the bound; 1 where stages
        could begin everywhere.
    rivals: the best simulated makespan met, by schedule and number of microbatches.
    """

    stages: tuple[PlannedStage, ...]
    schedule: str
    num_microbatches: int
    makespan_s: float
    formula_s: float
    bound_s: float
    granularity: int = 1
    rivals: tuple[tuple[str, int, float], ...] = ()

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    @property
    def bounds(self) -> tuple[int, ...]:
        """First layer of every stage and, last, the number of layers."""
        return (*(stage.first for stage in self.stages), self.stages[-1].stop)

    @property
    def gap(self) -> float:
        """How much longer than the bound the step takes, as a share of it; 0 is proven best.

        With a ``granularity`` above 1 the bound is that of the grid, which finer cuts may beat.
        """
        return self.makespan_s / self.bound_s - 1 if self.bound_s else 0.0

    def program(self) -> Schedule:
        """What every stage does in which order."""
        return program(self.schedule, self.num_stages, self.num_microbatches)

    def timeline(self) -> Timeline:
        """The step, simulated; what is done once comes after it."""

        def duration(action: Action) -> float:
            cost = self.stages[action.stage].cost
            if action.kind is Kind.FORWARD:
                return cost.forward_s
            if action.kind is Kind.WEIGHT:
                return cost.weight_s
            whole = action.kind is Kind.FULL_BACKWARD
            return cost.backward_s + cost.weight_s if whole else cost.backward_s

        def transfer(action: Action) -> float:
            if action.kind is Kind.RECEIVE_FORWARD:
                return self.stages[action.peer].send_s
            return self.stages[action.stage].return_s

        return simulate(self.program(), duration, transfer=transfer)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        stages = []
        for stage in self.stages:
            fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
            cost = stage.cost._asdict()
            lists = {"shape": list(stage.shape), "devices": list(stage.devices), "cost": cost}
            stages.append({**fields, **lists})
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "stages": stages, "rivals": [list(rival) for rival in self.rivals]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "InterOpPlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("inter-op plan", data, cls):
            stages = []
            for stage in data["stages"]:
                with reading("planned stage", stage, PlannedStage):
                    shape, cost = SubmeshShape(*stage["shape"]), StageCost(**stage["cost"])
                    devices = tuple(stage["devices"])
                    read = {**stage, "shape": shape, "cost": cost, "devices": devices}
                    stages.append(PlannedStage(**read))
            rivals = tuple((name, count, seconds) for name, count, seconds in data["rivals"])
            return cls(**{**data, "stages": tuple(stages), "rivals": rivals})
