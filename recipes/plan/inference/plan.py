"""``InferencePlan``: every way to serve a model on some devices, as a versioned text file.

No torch.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks._checks import check, check_count, reading
from recipes.plan.parallel_plan import Fingerprint
from recipes.plan.plan_file import check_version, read_plan, write_plan

FORMAT, VERSION = "blocks inference plan", 1


@dataclasses.dataclass(frozen=True)
class Passes:
    """Seconds of every stage for one kind of pass, what it sends to the next stage included.

    kind: ``batch`` of requests, ``prefill`` of a prompt, ``decode`` of a token for each.
    size: requests; of a prefill its tokens.
    context: tokens before the one decoded; 0 else.
    stage_s: seconds by stage.
    """

    kind: str
    size: int
    context: int
    stage_s: tuple[float, ...]

    @property
    def latency_s(self) -> float:
        """Of one pass alone."""
        return sum(self.stage_s)

    @property
    def slowest_s(self) -> float:
        """Between two passes."""
        return max(self.stage_s)


@dataclasses.dataclass(frozen=True)
class Overheads:
    """Where the devices' time of one pass goes that one device would not spend.

    collective_s: of the latency, in collectives of the devices that share a stage.
    send_s: of the latency beyond that of one stage: what goes between stages.
    uneven_s: stages times the slowest, beyond the latency: what the faster ones wait.

    Reference: Li et al. 2023, AlpaServe, section 3.3.
    """

    collective_s: float
    send_s: float
    uneven_s: float


@dataclasses.dataclass(frozen=True)
class ServedStage:
    """Contiguous layers on ``op`` devices.

    first, stop: of its layers.
    weight_bytes: on each device.
    kv_bytes: of a token's keys and values on each device.
    """

    first: int
    stop: int
    weight_bytes: int
    kv_bytes: int


@dataclasses.dataclass(frozen=True)
class Configuration:
    """``pp`` stages of ``op`` devices each.

    stages: in the order a request passes them.
    passes: by kind, size and context.
    activation_bytes: beside the weights, while the largest batch passes.
    overheads: of the smallest batch.
    placements: how parameters lie on the devices of a stage, by name; ``R`` are left out.
    """

    op: int
    pp: int
    stages: tuple[ServedStage, ...]
    passes: tuple[Passes, ...]
    activation_bytes: int
    overheads: Overheads
    placements: Mapping[str, str]

    @property
    def num_devices(self) -> int:
        return self.op * self.pp

    @property
    def weight_bytes(self) -> int:
        """Of the device that holds most."""
        return max(stage.weight_bytes for stage in self.stages)

    def first_pass(self) -> Passes:
        """Of the smallest batch."""
        return self.passes[0]


@dataclasses.dataclass(frozen=True)
class InferencePlan:
    """What a model takes in each configuration, cut so that the slowest stage is fastest.

    model, cluster: what it was made for.
    settings: what was asked for.
    device: name of the kind of device.
    source: where the cluster's numbers come from; all seconds are simulated from them.
    configurations: by op and pp.
    left_out: configurations that do not fit, each with why.
    """

    model: Fingerprint
    cluster: Fingerprint
    settings: Mapping[str, Any]
    device: str
    source: str
    configurations: tuple[Configuration, ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for one in self.configurations:
            check_count("op", one.op)
            check(len(one.stages) == one.pp, "stages", one.pp, len(one.stages))
            at = 0
            for stage in one.stages:
                check(stage.first == at < stage.stop, "stages", f"one from layer {at}", stage)
                at = stage.stop
            check(at == self.model.size, "stages", f"all {self.model.size} layers", at)
            for row in one.passes:
                ok = len(row.stage_s) == one.pp and min(row.stage_s) > 0
                check(ok, "stage_s", f"{one.pp} numbers above 0", row.stage_s)

    def configuration(self, op: int, pp: int) -> Configuration:
        """
        Raises:
            ValueError: none of the plan's.
        """
        known = {(one.op, one.pp): one for one in self.configurations}
        listed = ", ".join(f"{op} x {pp}" for op, pp in known)
        check((op, pp) in known, "configuration", f"one of {listed}", f"{op} x {pp}")
        return known[op, pp]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "InferencePlan":
        """
        Raises:
            ValueError: data that is no plan, or of a version that is not known here.
        """
        check_version(data, FORMAT, VERSION)
        names = [field.name for field in dataclasses.fields(cls)]
        with reading("inference plan", data, [*names, "format", "version"]):
            return cls(
                Fingerprint(**data["model"]),
                Fingerprint(**data["cluster"]),
                dict(data["settings"]),
                data["device"],
                data["source"],
                tuple(_configuration(one) for one in data["configurations"]),
                tuple(data["left_out"]),
            )

    def write(self, path: str | Path) -> Path:
        """Write the file."""
        return write_plan(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> "InferencePlan":
        """
        Raises:
            ValueError: no plan there.
        """
        return cls.from_json(read_plan(path, "recipes.plan inference"))


def _configuration(data: Mapping[str, Any]) -> Configuration:
    with reading("configuration", data, Configuration):
        passes = tuple(
            Passes(**{**one, "stage_s": tuple(one["stage_s"])}) for one in data["passes"]
        )
        return Configuration(
            data["op"],
            data["pp"],
            tuple(ServedStage(**stage) for stage in data["stages"]),
            passes,
            data["activation_bytes"],
            Overheads(**data["overheads"]),
            dict(data["placements"]),
        )
