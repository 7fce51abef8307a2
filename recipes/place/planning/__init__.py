"""From a config to a placement that is searched for, judged and compared. Needs no torch."""

from recipes.place.planning.change import Change, workload_at
from recipes.place.planning.curves import AXES, Curve, Point, curve, curves
from recipes.place.planning.infeasible import impossible, unhosted
from recipes.place.planning.placement_file import read_placement, read_plan, write_placement
from recipes.place.planning.search import find_placement
from recipes.place.planning.task import PlaceTask
from recipes.place.planning.ways import Way, ways
from recipes.place.planning.what_if import WhatIf, carries, what_if

__all__ = [
    "AXES",
    "Change",
    "Curve",
    "PlaceTask",
    "Point",
    "Way",
    "WhatIf",
    "carries",
    "curve",
    "curves",
    "find_placement",
    "impossible",
    "read_placement",
    "read_plan",
    "unhosted",
    "ways",
    "what_if",
    "workload_at",
    "write_placement",
]
