"""``Planned``: everything that the verb ``plan`` finds out."""

import dataclasses

from blocks.sched.place_search import PlacementPlan
from blocks.sched.placement import Placement
from recipes.place.planning.infeasible import unhosted
from recipes.place.planning.search import Say, find_placement
from recipes.place.planning.tables import share
from recipes.place.planning.task import PlaceTask
from recipes.place.planning.ways import Way, ways
from recipes.place.planning.what_if import UP, WhatIf, carries, what_if

WORTH = 0.001
"""Less gain than this, a thousandth of the requests, changes nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """A placement and how good it is.

    ways: the placement first, then what it is compared with.
    missed: models and how many of their requests are not served in time, most first.
    unhosted: why models have no replica.
    carries: factor on the rates up to which 99 % are served in time.
    what_ifs: empty where they were not asked for, or nothing is missing.
    """

    task: PlaceTask
    plan: PlacementPlan
    ways: tuple[Way, ...]
    missed: tuple[tuple[str, int], ...]
    unhosted: tuple[str, ...]
    carries: float
    what_ifs: tuple[WhatIf, ...]

    @property
    def carries_text(self) -> str:
        """The factor; the last one that is tried may not be the last that could be."""
        return f"{self.carries:g} or more" if self.carries >= UP[-1] else f"{self.carries:g}"

    @property
    def binds(self) -> str:
        """What keeps attainment from being higher, by what helps most."""
        if self.plan.attainment > 1 - WORTH:
            return "nothing: everything is served in time"
        best = max(self.what_ifs, key=lambda one: one.gain, default=None)
        if best is None:
            return "not looked for"
        if best.gain < WORTH:
            return "none of these alone: bursts are longer than limits and devices can bridge"
        return f"{best.change} helps most, to {share(best.attainment)}"


def planned(task: PlaceTask, say: Say = lambda line: None, *, quick: bool = False) -> Planned:
    """Search, compare, and ask what would change it.

    Args:
        quick: leave the what-ifs out, which search several times more.

    Raises:
        ValueError: as ``find_placement``.
    """
    plan = find_placement(task, say)
    say("comparing")
    compared = ways(task, plan.placement)
    missing = plan.attainment <= 1 - WORTH
    say("how much more traffic it carries")
    factor = carries(task, plan.placement)
    asked = what_if(task, plan.placement, say) if missing and not quick else ()
    missed = _missed(task, plan.placement)
    return Planned(task, plan, compared, missed, unhosted(task, plan.placement), factor, asked)


def _missed(task: PlaceTask, placement: Placement) -> tuple[tuple[str, int], ...]:
    met = task.simulator().run(placement).met_by_model
    left = (task.workload.requests_by_model() - met).tolist()
    counted = sorted(zip(task.workload.models, left, strict=True), key=lambda pair: -pair[1])
    return tuple((model, count) for model, count in counted if count)
