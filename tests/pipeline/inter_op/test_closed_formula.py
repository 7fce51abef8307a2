"""The program over layers, stages and devices against every partition there is."""

import random

import pytest

from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.closed_formula import closed_formula
from blocks.pipeline.inter_op.formula import alpa, trip_bound
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.step_bound import step_bounds
from tests.pipeline.inter_op.stage_tables import draw, every_plan, fitting


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force(seed):
    """Alpa's formula and the bound by trips, each with its own terms."""
    drawn = draw(random.Random(seed), max_layers=6)
    priced = drawn.priced()
    cluster = (drawn.case.num_hosts, drawn.case.devices_per_host, drawn.case.kinds)
    devices = budget(drawn.case.table.shapes, *cluster, whole=not drawn.idle)
    plans = fitting(every_plan(drawn.case, idle=drawn.idle), drawn, priced)
    for formula in (alpa(priced), trip_bound(priced)):
        if formula is None:
            assert drawn.schedule.startswith("zb"), "its order is known by the number of stages"
            continue
        found = closed_formula(formula, devices)
        if not plans:
            assert not found.choices
            continue
        best = min(formula.seconds(plan) for plan in plans)
        choice = found.choices[0]
        assert choice.stages in plans
        assert choice.seconds == formula.seconds(choice.stages) == pytest.approx(best, rel=1e-12)
        assert found.bound_s == pytest.approx(best, rel=1e-12)
        rough = closed_formula(formula, devices, epsilon=0.05)
        assert rough.bound_s <= best * (1 + 1e-12)
        assert rough.choices[0].seconds * 0.95 <= rough.bound_s * (1 + 1e-12)
        assert rough.num_caps <= found.num_caps


@pytest.mark.parametrize("seed", range(100, 116))
def test_no_simulated_plan_is_below_its_bounds(seed):
    drawn = draw(random.Random(seed), max_layers=5)
    cluster = (drawn.case.num_hosts, drawn.case.devices_per_host, drawn.case.kinds)
    devices = budget(drawn.case.table.shapes, *cluster, whole=not drawn.idle)
    totals = step_bounds(drawn.priced(), devices, len(drawn.case.table.bounds) - 1).totals
    for plan in fitting(every_plan(drawn.case, idle=drawn.idle), drawn, drawn.priced())[:200]:
        priced = drawn.priced(len(plan))
        (seconds,) = makespans(priced, [plan])
        trips = trip_bound(priced)
        assert trips is not None
        assert trips.seconds(plan) <= seconds * (1 + 1e-12)
        assert totals[len(plan)] <= seconds * (1 + 1e-12)
