"""Figures of the rules: how many strategies are proved, against the operations themselves."""

import random
from collections.abc import Iterator

from benches.figures.row import Measured, Row
from blocks.sharding import Mesh, audit_rule, strategies

COMMAND = "python -m benches.figures --area plan"
MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=4), Mesh.of(a=2, b=2))
NUM_DRAWS = 20


def rows() -> Iterator[Row]:
    yield Row(
        f"strategies of every rule on 2, 3, 4 and 2 x 2 ranks, {NUM_DRAWS} draws of tensors each, "
        "sizes that divide and sizes that do not: parts make the whole, float64",
        "all",
        COMMAND,
        _rules,
    )
    yield Row(
        "strategies of every different call of ten traced families, tiny, on 2, 3, 4 and 2 x 2 "
        "ranks, with the numbers met in training: parts make the whole",
        "all",
        f"{COMMAND} --nightly",
        _families,
        nightly=True,
    )


def _rules() -> Measured:
    from tests.sharding.rule_cases import CASES

    right = tried = 0
    for name, draw in CASES.items():
        for seed in range(NUM_DRAWS):
            case = draw(random.Random(seed), name)
            for mesh in MESHES:
                tried += len(strategies(case.rule, mesh))
                try:
                    args = (case.rule, case.inputs, case.operation, mesh)
                    right += audit_rule(*args, local=case.local)
                except AssertionError:
                    continue
    return Measured(f"{right:,} of {tried:,}, {len(CASES)} uses of rules", right == tried)


def _families() -> Measured:
    from tests.plan.test_node_rules import TINY, audit_family

    right, wrong = 0, []
    for name in TINY:
        try:
            right += audit_family(name, MESHES)
        except AssertionError:
            wrong.append(name)
    return Measured(f"{right:,}, all but {wrong}" if wrong else f"all of {right:,}", not wrong)
