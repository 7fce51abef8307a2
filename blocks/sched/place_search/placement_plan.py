"""``PlacementPlan``: the placement that was found, what it attains, and how good that is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blocks._checks import reading
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
            return cls(
                Placement.from_json(data["placement"]),
                float(data["attainment"]),
                float(data["bound"]),
                int(data["evaluated"]),
                str(data["found_by"]),
                {str(name): float(share) for name, share in data["attained"].items()},
            )
