"""The program over layers, stages and devices against every partition there is."""

import random

import pytest

from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.closed_formula import closed_formula
from blocks.pipeline.inter_op.priced import Priced
from tests.pipeline.inter_op.stage_tables import Case, every_plan, random_case

KINDS = ((), (), ("a", "b"))


def fitting(case: Case, priced: Priced, *, idle: bool = False) -> list:
    """Plans whose every stage keeps to the caps."""
    found = []
    for plan in every_plan(case, idle=idle):
        to_end = range(len(plan), 0, -1)
        if all(priced.fits(n)[stage] for n, stage in zip(to_end, plan, strict=True)):
            found.append(plan)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_equals_brute_force(seed):
    rng = random.Random(seed)
    kinds = rng.choice(KINDS)
    case = random_case(
        rng,
        rng.randint(1, 6),
        len(kinds) or rng.choice([1, 2, 3]),
        rng.choice([2, 4]) if not kinds else 2,
        num_options=rng.choice([1, 2]),
        transfers=rng.random() < 0.7,
        kinds=kinds,
    )
    idle = rng.random() < 0.3
    schedule = rng.choice(["one_f_one_b", "one_f_one_b", "gpipe", "zb_h1"])
    caps = [rng.choice([40, 80, 150, float("inf")])] * len(case.table.shapes)
    priced = Priced(case.table, schedule, rng.choice([1, 2, 4, 8, 16]), caps)
    plans = fitting(case, priced, idle=idle)
    devices = budget(
        case.table.shapes, case.num_hosts, case.devices_per_host, kinds, whole=not idle
    )
    found = closed_formula(priced, devices)
    if not plans:
        assert not found.choices
        return
    best = min(priced.formula_s(plan) for plan in plans)
    assert found.choices[0].stages in plans
    assert found.choices[0].formula_s == priced.formula_s(found.choices[0].stages)
    assert found.choices[0].formula_s == pytest.approx(best, rel=1e-12)
    assert found.bound_s == pytest.approx(best, rel=1e-12)
