"""``PlacementPlan``: the placement that was found, what it attains, and how good that is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import check, fail, reading
from blocks.sched.placement import Placement


@dataclasses.dataclass(frozen=True)
class PlacementPlan:
    """A placement for a workload.

    placement: groups, configurations, hosted models.
    attainment: share of the workload's requests that it serves in time, simulated.
    bound: no placement on these devices attains more, where no stage is quicker than its profile.
    evaluated: placements simulated to find it.
    found_by: name of the way that found it.
    attained: what each way attained that was tried, by name.
    """

    placement: Placement
    attainment: float
    bound: float
    evaluated: int
    found_by: str
    attained: Mapping[str, float]

    @property
    def gap(self) -> float:
        """How far below the bound it is, as a share of all requests; 0 is certified best."""
        return max(0.0, self.bound - self.attainment)

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {share:.2%}" for name, share in self.attained.items())
        head = f"{self.attainment:.2%} of requests in time, at most {self.bound:.2%} possible"
        return f"{head}; {self.evaluated} placements simulated ({tried})\n{self.placement}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**data, "placement": self.placement.to_json(), "attained": dict(self.attained)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PlacementPlan":
        """
        Raises:
            ValueError: data that is no plan.
        """
        with reading("placement plan", data, cls):
            evaluated, found_by = data["evaluated"], data["found_by"]
            whole = type(evaluated) is int and evaluated >= 0
            check(whole, "evaluated", "a whole number from 0", repr(evaluated))
            check(isinstance(found_by, str), "found_by", "a text", repr(found_by))
            return cls(
                Placement.from_json(data["placement"]),
                _share("attainment", data["attainment"]),
                _share("bound", data["bound"]),
                evaluated,
                found_by,
                {name: _share(f"attained.{name}", one) for name, one in data["attained"].items()},
            )


def _share(name: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1):  # type: ignore[operator]
        raise fail(name, "a share from 0 to 1", repr(value))
    return float(value)  # type: ignore[arg-type]
