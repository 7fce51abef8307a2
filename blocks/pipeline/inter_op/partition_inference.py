"""``partition_inference``: layers to stages for serving: the slowest stage sets the pace.

Needs numpy, no torch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from blocks._checks import check, check_count, check_positive, reading
from blocks.pipeline.inter_op.budget import Budget, budget
from blocks.pipeline.inter_op.caps import Caps, caps_of
from blocks.pipeline.inter_op.closed_formula import Plan, trace
from blocks.pipeline.inter_op.does_not_fit import DoesNotFit, largest_of_least
from blocks.pipeline.inter_op.priced import least_option
from blocks.pipeline.inter_op.stage_table import StageSource, StageTable
from blocks.pipeline.inter_op.submesh import SubmeshShape, cover
from blocks.pipeline.inter_op.suffixes import suffixes


@dataclasses.dataclass(frozen=True)
class InferenceStage:
    """Contiguous layers on one submesh.

    first, stop, shape, devices, option: see ``PlannedStage``.
    forward_s: seconds of a microbatch.
    send_s: seconds of its outputs to the next stage.
    peak_bytes: on each device.
    """

    first: int
    stop: int
    shape: SubmeshShape
    devices: tuple[int, ...]
    option: str
    forward_s: float
    send_s: float
    peak_bytes: float


@dataclasses.dataclass(frozen=True)
class InferencePlan:
    """Stages that forwards pass through.

    stages: in the order data flows.
    slowest_s: seconds of the slowest stage: the time between two microbatches.
    latency_s: seconds of one microbatch through all stages and the transfers between them.
    by_num_stages: the least ``slowest_s`` for every number of stages there is a plan for.
    """

    stages: tuple[InferenceStage, ...]
    slowest_s: float
    latency_s: float
    by_num_stages: tuple[tuple[int, float], ...]

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        data = dataclasses.asdict(self)
        for stage in data["stages"]:
            stage.update(shape=list(stage["shape"]), devices=list(stage["devices"]))
        pairs = [list(pair) for pair in self.by_num_stages]
        return {**data, "stages": list(data["stages"]), "by_num_stages": pairs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "InferencePlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("inference plan", data, cls):
            stages = []
            for stage in data["stages"]:
                with reading("inference stage", stage, InferenceStage):
                    shape, devices = SubmeshShape(*stage["shape"]), tuple(stage["devices"])
                    stages.append(InferenceStage(**{**stage, "shape": shape, "devices": devices}))
            pairs = tuple((count, seconds) for count, seconds in data["by_num_stages"])
            return cls(**{**data, "stages": tuple(stages), "by_num_stages": pairs})


def partition_inference(
    table: StageSource,
    num_hosts: int,
    devices_per_host: int,
    *,
    num_stages: int | None = None,
    in_flight: int = 1,
    memory_cap_bytes: Caps = None,
    kinds: Sequence[str] = (),
    idle_devices: bool = False,
    max_stages: int | None = None,
) -> InferencePlan:
    """The partition whose slowest stage is fastest; of those, the one with the least latency.

    Only ``forward_s`` and bytes of the table count. Where the number of stages is free, it is the
    one with the least product of stages and slowest stage: a microbatch that waits for its turn at
    every stage takes that long.

    Args:
        table: what stages cost.
        num_hosts, devices_per_host: the cluster.
        num_stages: how many; free when None.
        in_flight: microbatches a stage holds, such as batches whose keys and values it keeps.
        memory_cap_bytes: of a device; by kind where there are several.
        kinds: kind of every host where there are several.
        idle_devices: whether devices may be left out.
        max_stages: most stages where their number is free.

    Raises:
        DoesNotFit: no plan keeps to the limits, with the limit and the shortfall.

    Reference: Zheng et al. 2022, Alpa, and Li et al. 2023, AlpaServe, section 4.1.
    """
    check_count("in_flight", in_flight)
    check_positive("num_stages", num_stages)
    check_positive("max_stages", max_stages)
    stages = table if isinstance(table, StageTable) else table.at(range(table.num_layers + 1))
    most = num_stages or min(max_stages or len(stages.bounds), len(stages.bounds) - 1)
    hint = "every stage holds at least one layer"
    check(most < len(stages.bounds), "num_stages", f"at most {len(stages.bounds) - 1}", most, hint)
    devices = budget(stages.shapes, num_hosts, devices_per_host, kinds, whole=not idle_devices)
    search = _Search(stages, devices, caps_of(memory_cap_bytes, stages.shapes), in_flight)
    slowest = search.slowest(most)
    slowest = {n: value for n, value in slowest.items() if num_stages in (None, n)}
    if not slowest:
        raise search.why_not(most, num_stages)
    best = min(slowest, key=lambda n: (n * slowest[n], n))
    plan = search.least_latency(best, slowest[best])
    shapes = [stages.shapes[stage[2]] for stage in plan]
    places = cover(shapes, num_hosts, devices_per_host, kinds=kinds)
    made = [search.stage(plan, n, places[n]) for n in range(best)]
    latency_s = sum(stage.forward_s + stage.send_s for stage in made)
    return InferencePlan(tuple(made), slowest[best], latency_s, tuple(slowest.items()))


class _Search:
    """The programs over stages that keep to the caps."""

    def __init__(
        self, table: StageTable, devices: Budget, caps: Sequence[int | float], in_flight: int
    ) -> None:
        import numpy as np

        self.table, self.devices = table, devices
        self.forward_s = table.cells["forward_s"]
        exists = np.isfinite(self.forward_s)
        cells = {name: np.where(exists, values, 0.0) for name, values in table.cells.items()}
        self.bytes = cells["fixed_bytes"] + cells["transient_bytes"]
        self.bytes = self.bytes + in_flight * cells["microbatch_bytes"]
        self.over = np.where(exists, self.bytes - np.asarray(caps, float)[:, None], np.inf)
        self.seconds = np.where(self.over <= 0, self.forward_s, np.inf)

    def slowest(self, most: int) -> dict[int, float]:
        """The least slowest stage by number of stages."""
        return largest_of_least(self.seconds, self.devices, most)

    def least_latency(self, num_stages: int, cap: float) -> Plan:
        """The plan with the least latency of so many stages, none slower than ``cap``."""
        import numpy as np

        allowed = np.where(self.seconds <= cap, self.seconds, np.inf)
        least, send = least_option(allowed), self.table.send_s
        found = suffixes(lambda to_end: (least, None), send, self.devices, num_stages)
        return trace(found, lambda _, k, m: (allowed[k, :, m], None), send, num_stages)

    def why_not(self, most: int, num_stages: int | None) -> DoesNotFit:
        """The error where nothing fits."""
        over = largest_of_least(self.over, self.devices, most)
        over = {n: value for n, value in over.items() if num_stages in (None, n)}
        return DoesNotFit.by(min(over.values(), default=None), "the stages that need least")

    def stage(self, plan: Plan, n: int, devices: tuple[int, ...]) -> InferenceStage:
        k, i, m, o = plan[n]
        last = n + 1 == len(plan)
        return InferenceStage(
            first=self.table.bounds[k],
            stop=self.table.bounds[i],
            shape=self.table.shapes[m],
            devices=devices,
            option=self.table.options[o],
            forward_s=float(self.forward_s[k, i, m, o]),
            send_s=0.0 if last else float(self.table.send_s[i, m, plan[n + 1][2]]),
            peak_bytes=float(self.bytes[k, i, m, o]),
        )
