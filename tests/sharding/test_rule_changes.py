"""Rules that allow more than they do are wrong: the audit finds each, and no cut is left out."""

import dataclasses
from collections.abc import Iterator
from random import Random

from blocks.sharding import Mesh, OpRule, audit_rule, strategies
from tests.sharding.rule_cases import CASES
from tests.sharding.rule_cases.case import Case

MESHES = (Mesh.of(a=2), Mesh.of(a=3))
NUM_DRAWS = 6
RIGHT_AS_WELL = {
    "output_rule: 0 linear",  # nothing comes out of it; addends are refused for the caller's sake
    "attention_backward_rule of torch: key sum",  # but not where keys are masked by their place
}


def changes(drawn: Case) -> Iterator[tuple[str, OpRule]]:
    """The rule with one more freedom: a factor that can be cut, an input that may be addends."""
    rule = drawn.rule
    for at, factor in enumerate(rule.factors):
        everywhere = all(at in dims for dims in rule.outputs)
        for kind in ("sum", "parallel") if everywhere else ("sum",):
            if factor.kind in ("whole", "max"):
                factors = list(rule.factors)
                factors[at] = dataclasses.replace(factor, kind=kind)
                yield f"{factor.name} {kind}", dataclasses.replace(rule, factors=tuple(factors))
    for at, tensor in enumerate(drawn.inputs):
        if (at,) not in rule.linear and tensor.is_floating_point() and tensor.numel():
            yield f"{at} linear", dataclasses.replace(rule, linear=((at,),))


def is_found(drawn: Case, rule: OpRule) -> bool:
    try:
        for mesh in MESHES:
            audit_rule(rule, drawn.inputs, drawn.operation, mesh, local=drawn.local)
    except Exception:  # the operation itself may refuse what it is given
        return True
    return False


def test_one_freedom_more_is_found() -> None:
    found, missed = set(), set()
    for name, draw in CASES.items():
        for seed in range(NUM_DRAWS):
            drawn = draw(Random(seed), name)
            before = sum(len(strategies(drawn.rule, mesh)) for mesh in MESHES)
            for change, rule in changes(drawn):
                after = sum(len(strategies(rule, mesh)) for mesh in MESHES)
                if "linear" in change or after > before or "max" in str(drawn.rule):
                    (found if is_found(drawn, rule) else missed).add(f"{name}: {change}")
    assert missed - found == RIGHT_AS_WELL
    assert len(found) > 120
