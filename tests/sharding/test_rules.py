"""Rules against the operations themselves, on 2, 3 and 4 simulated ranks."""

import dataclasses
import json
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from blocks.sharding import Mesh, OpRule, rules
from blocks.sharding.rule_audit import audit_rule
from tests.sharding.rule_cases import CASES
from tests.sharding.rule_cases.case import Case, floats

CONV_GRADIENTS = ("conv_input_gradient_rule", "conv_weight_gradient_rule")


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=settings().max_examples // 10)
@given(st.randoms(use_true_random=False))
def test_parts_make_the_whole(name: str, rng: Random) -> None:
    CASES[name](rng, name).audit()


def test_every_rule_is_audited() -> None:
    audited = {name.partition(" ")[0] for name in CASES}
    assert audited == {name for name in rules.__all__ if name.endswith("_rule")}


def changed(rule: OpRule, name: str, **changes) -> OpRule:
    """The rule with another kind for a factor."""
    factors = tuple(
        dataclasses.replace(factor, **changes) if factor.name == name else factor
        for factor in rule.factors
    )
    return dataclasses.replace(rule, factors=factors)


def wrong_cases() -> dict[str, Case]:
    x, w = floats(4, 5, 6), floats(8, 6)
    image, taps = floats(4, 3, 6), floats(4, 3, 3)
    key = floats(2, 4, 5, 3)
    conv = lambda x, w: torch.conv1d(x, w)  # noqa: E731
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    table, index = floats(8, 3), torch.arange(4)
    amax = rules.reduce_rule(x.shape, [1])
    softmax = rules.elementwise_rule([x.shape])
    inner = rules.rule_of({"inner": 6}, ["_ inner"], ["inner"], even="inner")
    addition = rules.elementwise_rule([x.shape] * 2, linear=[(0,)])
    linear = torch.nn.functional.linear
    spatial = rules.rule_of(
        {"batch": 4, "out": 4, "in": 3, "place": 6}, ["batch in place", "out in _"],
        ["batch out _"],
    )  # fmt: skip
    return {
        "a maximum summed": Case(amax, [x], lambda x: x.amax(1)),
        "a mean of means": Case(amax, [x], lambda x: x.mean(1)),
        "softmax with its dim cut": Case(softmax, [x], lambda x: x.softmax(1)),
        "a bend called linear": Case(
            rules.elementwise_rule([x.shape], linear=[(0,)]), [x], torch.relu
        ),
        "one addend of two": Case(addition, [x, x], torch.add),
        "a bias added by all": Case(
            rules.linear_rule(x.shape, w.shape, bias=True), [x, w, floats(8)], linear
        ),
        "the inner of two dims merged": Case(
            inner,
            [floats(4, 6)],
            lambda x: x.reshape(24),
            lambda share, x: x.reshape(share.local_shapes[0]),
        ),
        "places of a convolution": Case(spatial, [image, taps], conv),
        "keys of attention": Case(
            changed(rules.attention_rule(key.shape, key.shape), "key", kind="sum"),
            [key, key, key],
            attend,
        ),
        "rows looked up without a mask": Case(
            rules.embedding_rule(table.shape, index.shape),
            [table, index],
            torch.ops.aten.embedding,
            lambda share, table, index: table[index % len(table)],
        ),
        "indices added to more than zeros": Case(
            rules.index_add_rule(table.shape, index.shape, 0, onto_zeros=True),
            [table, index, floats(4, 3)],
            lambda table, index, values: table.index_add(0, index, values),
        ),
    }


@pytest.mark.parametrize("name", wrong_cases())
def test_the_audit_finds_wrong_rules(name: str) -> None:
    with pytest.raises(AssertionError, match="output 0 of"):
        wrong_cases()[name].audit()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("matmul", "linear"))])
@settings(max_examples=settings().max_examples // 8)
@given(st.randoms(use_true_random=False))
def test_flops_are_those_that_torch_counts(name: str, rng: Random) -> None:
    check_flops(CASES[name](rng, name))


@settings(max_examples=settings().max_examples // 2)
@given(st.randoms(use_true_random=False), st.sampled_from(["conv_rule", *CONV_GRADIENTS]))
def test_flops_of_convolutions(rng: Random, name: str) -> None:
    drawn = CASES[name](rng, name)
    grouped = name == "conv_weight_gradient_rule" and "group" in str(drawn.rule)
    if not grouped:  # torch counts the groups of that one twice
        check_flops(drawn)


def test_flops_of_attention() -> None:
    """Forward two products, backward five, over all heads."""
    query, key = (2, 8, 5, 16), (2, 2, 7, 16)
    product = 2 * 2 * 8 * 5 * 7 * 16
    assert rules.attention_rule(query, key).flops() == 2 * product
    assert rules.attention_backward_rule(query, key).flops() == 5 * product


def check_flops(drawn: Case) -> None:
    with FlopCounterMode(display=False) as counted:
        drawn.operation(*drawn.inputs)
    assert drawn.rule.flops() == counted.get_total_flops()


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(CASES)))
def test_json_both_ways(rng: Random, name: str) -> None:
    rule = CASES[name](rng, name).rule
    assert OpRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


REFUSED = {
    "matmul: expected shapes": lambda: rules.matmul_rule((2, 3), (4, 5)),
    "last dim of x: expected 6, got 5": lambda: rules.linear_rule((2, 5), (4, 6)),
    "rows of grad": lambda: rules.linear_weight_gradient_rule((2, 4), (3, 6)),
    "x: expected at least one dim": lambda: rules.linear_rule((), (6, 5)),
    "shapes: expected 2 dims, alike but for dim 0": lambda: rules.cat_rule([(4, 3), (4, 5)], 0),
    "shapes: expected all alike": lambda: rules.stack_rule([(4, 3), (4, 5)], 0),
    "query heads: expected a multiple of 3": lambda: rules.attention_rule(
        (2, 4, 5, 8), (2, 3, 5, 8)
    ),
    "weight: expected": lambda: rules.conv_rule((2, 4, 8), (6, 3, 3), (2, 6, 6)),
    "shape: expected": lambda: rules.pool_rule([(2, 4, 8)], [(2, 3, 4)]),
    "equation: expected with an arrow": lambda: rules.einsum_rule("ij,jk", [(2, 3), (3, 4)]),
    "size of j: expected 3, got 4": lambda: rules.einsum_rule("ij,jk->ik", [(2, 3), (4, 4)]),
    "operand: expected 2 different letters": lambda: rules.einsum_rule("ii->i", [(2, 2)]),
    "shapes: expected sizes": lambda: rules.elementwise_rule([(2, 3), (2,)]),
    "view: expected 6 elements": lambda: rules.view_rule((2, 3), (5,)),
    "order: expected every dim below 2 once": lambda: rules.permute_rule((2, 3), (0, 0)),
    "expand: expected": lambda: rules.expand_rule((2,), (3,)),
    "dim: expected -2 to 1, got 2": lambda: rules.cumsum_rule((2, 3), 2),
    "index: expected 2 dims": lambda: rules.gather_rule((2, 3), (2,), 0),
    "num_stats: expected 0": lambda: rules.batch_norm_rule((2, 3), training=False),
    "channels: expected a multiple of 2": lambda: rules.group_norm_rule((2, 3, 4), 2),
    "num_normalized: expected 1 to 2": lambda: rules.layer_norm_rule((2, 3), 3),
    r"factor: expected one of \['row'\], got 'column'": lambda: rules.rule_of(
        {"row": 2}, ["row column"], ["row"]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_shapes_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_the_audit_refuses_tensors_of_another_rule() -> None:
    rule = rules.matmul_rule((4, 6), (6, 8))
    for inputs in ([floats(4, 6)], [floats(4, 6), floats(6)], [floats(4, 6), floats(6, 7)]):
        with pytest.raises(ValueError, match="expected"):
            audit_rule(rule, inputs, lambda *t: torch.zeros(4, 8), Mesh.of(a=2))
