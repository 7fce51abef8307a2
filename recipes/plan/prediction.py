"""What a plan foresees: seconds by cause and bytes by kind. Needs no torch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, reading


@dataclasses.dataclass(frozen=True)
class StagePrediction:
    """Of one stage, on the device of it that has most to do.

    forward_s, backward_s: of one microbatch, collectives included.
    update_s: what runs once a step: gradient sums, the optimizer, gathering of parameters.
    compute_s: of the whole step, all microbatches.
    collective_s: of the whole step, seconds by kind of collective.
    parameter_bytes, gradient_bytes, optimizer_bytes: held throughout.
    flight_bytes: of one microbatch in flight.
    in_flight: microbatches in flight at most.
    transient_bytes: beside all these, at the worst moment.
    """

    forward_s: float
    backward_s: float
    update_s: float
    compute_s: float
    collective_s: Mapping[str, float]
    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    flight_bytes: float
    in_flight: int
    transient_bytes: float

    @property
    def peak_bytes(self) -> float:
        """Most bytes a device holds."""
        fixed = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes
        return fixed + self.in_flight * self.flight_bytes + self.transient_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StagePrediction":
        """
        Raises:
            ValueError: data that is no prediction.
        """
        with reading("stage prediction", data, cls):
            seconds = dict(data["collective_s"])
            _check_numbers({**data, **seconds}, without=("collective_s",))
            return cls(**{**data, "collective_s": seconds})


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of the step.

    step_s: predicted seconds, those the simulated schedule takes.
    bound_s: no stages, cut at whatever layers, submeshes, schedule and microbatches take less by
        the costs of layers of all strategies looked at, those of the plan's own stages among them.
    bubble: share of the devices' time that they wait in, over all stages.
    cost_source: where the cost model's numbers come from.
    error: relative error of the cost model where it was measured; None where it was not.
    """

    step_s: float
    bound_s: float
    bubble: float
    cost_source: str
    error: float | None = None

    @property
    def gap(self) -> float:
        """How much longer than the bound the step takes, as a share of the bound."""
        return self.step_s / self.bound_s - 1 if self.bound_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Prediction":
        """
        Raises:
            ValueError: data that is no prediction.
        """
        with reading("prediction", data, cls):
            _check_numbers(data, without=("cost_source", *["error"] * (data["error"] is None)))
            return cls(**data)


def _check_numbers(data: Mapping[str, Any], without: tuple[str, ...]) -> None:
    for name, value in data.items():
        number = isinstance(value, int | float) and 0 <= value < math.inf
        check(name in without or number, name, "a finite number of at least 0", repr(value))
