"""``PipelinePlan``: how a training step is cut and ordered, and what it takes. Needs no torch."""

import dataclasses
from typing import Any

from blocks._checks import reading
from blocks.pipeline.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class PipelinePlan:
    """A schedule with the cuts it was made for, its predicted time and how good that is.

    schedule: what every rank does, compute actions alone; ``lower`` adds the transfers.
    bounds: token slice ``i`` of every sequence is ``bounds[i]`` to ``bounds[i + 1]``.
    recompute: stages that recompute their activations before the backward.
    makespan_s: predicted seconds of the step, those ``simulate`` finds.
    busy_s: predicted seconds every rank computes.
    order_bound_s: no order of these slices under this cap takes less, see ``order_bound``.
    lower_bound_s: neither does any other cut, order or mode that was allowed, see
        ``slicing_bound``.
    peak_bytes: most bytes live on every rank, those ``peak_bytes`` finds.
    memory_cap: bytes no rank was allowed to exceed; None for no cap.
    explanation: the choice and its price in words.
    """

    schedule: Schedule
    bounds: tuple[int, ...]
    recompute: tuple[int, ...]
    makespan_s: float
    busy_s: tuple[float, ...]
    order_bound_s: float
    lower_bound_s: float
    peak_bytes: tuple[float, ...]
    memory_cap: int | float | None
    explanation: str

    @property
    def num_slices(self) -> int:
        return len(self.bounds) - 1

    @property
    def gap(self) -> float:
        """How much longer than the lower bound the step takes, as a share of it."""
        return self.makespan_s / self.lower_bound_s - 1 if self.lower_bound_s else 0.0

    @property
    def bubble(self) -> float:
        """idle / (idle + busy) over all ranks."""
        whole = self.makespan_s * len(self.busy_s)
        return 1 - sum(self.busy_s) / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(x) for name, x in fields.items() if isinstance(x, tuple)}
        return {**fields, **lists, "schedule": self.schedule.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PipelinePlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("pipeline plan", data, cls):
            tuples = {name: tuple(x) for name, x in data.items() if isinstance(x, list)}
            return cls(**{**data, **tuples, "schedule": Schedule.from_json(data["schedule"])})
