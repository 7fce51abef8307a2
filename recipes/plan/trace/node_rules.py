"""The rule of a call of an aten operation: which function of ``blocks.sharding.rules`` it has."""

import dataclasses
from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace.layout_rules import LAYOUTS
from recipes.plan.trace.lookup_rules import LOOKUPS
from recipes.plan.trace.node_tensors import (
    Make,
    inputs_of,
    results_of,
    whole_rule,
)
from recipes.plan.trace.norm_rules import NORMS
from recipes.plan.trace.pointwise_rules import addends_of, is_broadcast, is_pointwise
from recipes.plan.trace.product_rules import PRODUCTS
from recipes.plan.trace.reduction_rules import REDUCTIONS

_TABLE: dict[Any, Make] = {**PRODUCTS, **REDUCTIONS, **LAYOUTS, **LOOKUPS, **NORMS}


def rule_of_node(node: fx.Node) -> OpRule:
    """The rule of one call. What is not known is whole: it is done by every rank alike."""
    inputs = [tuple(one.meta["val"].shape) for one in inputs_of(node)]
    outputs = [tuple(one.shape) for one in results_of(node)]
    make = _TABLE.get(node.target)
    if make is not None:
        return _with_sums_of_numbers(node, make(node, inputs, outputs))
    if is_pointwise(node.target) and inputs and is_broadcast(inputs, outputs):
        linear = addends_of(node)
        rule = rules.elementwise_rule(inputs, linear=linear, num_outputs=len(outputs))
        return _with_sums_of_numbers(node, rule)
    return whole_rule(inputs, outputs)


def _with_sums_of_numbers(node: fx.Node, rule: OpRule) -> OpRule:
    """Without addends of whole numbers, which wrap around, and of truth values."""
    inputs = [one.meta["val"].dtype.is_floating_point for one in inputs_of(node)]
    made = [one.dtype for one in results_of(node)]
    linear = rule.linear if all(dtype.is_floating_point for dtype in made) else ()
    linear = tuple(together for together in linear if all(inputs[at] for at in together))
    factors = tuple(
        dataclasses.replace(factor, kind="whole")
        if factor.kind == "sum" and torch.bool in made
        else factor
        for factor in rule.factors
    )
    return dataclasses.replace(rule, factors=factors, linear=linear)
