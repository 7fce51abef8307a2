"""``scaled_graph``: a training step for another number of rows, from those of two. No torch.

Sizes of a step are affine in the rows of its batch, so that two traces show all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from blocks._checks import check, fail
from blocks.sharding import Factor, OpGraph, OpNode, OpRule


def scaled_graph(
    small: OpGraph, small_rows: int, large: OpGraph, large_rows: int, rows: int
) -> OpGraph:
    """The graph of ``rows`` rows.

    Args:
        small, large: the same step of fewer and of more rows.

    Raises:
        ValueError: two graphs that differ in more than sizes, or a size that comes to no whole
            number: sizes that are not affine in the rows.
    """
    same = len(small.nodes) == len(large.nodes) and len(small.values) == len(large.values)
    if not same or small_rows == large_rows:
        raise fail("graphs", "the same operations for two numbers of rows", "others")
    share = (rows - small_rows, large_rows - small_rows)
    scale = _Scale(share)
    values = tuple(
        dataclasses.replace(a, shape=scale.sizes(a.shape, b.shape))
        for a, b in zip(small.values, large.values, strict=True)
    )
    nodes = tuple(scale.node(a, b) for a, b in zip(small.nodes, large.nodes, strict=True))
    return OpGraph(values, nodes, small.returns)


class _Scale:
    """Invariant: ``_rules`` holds the rules whose addresses are its keys."""

    def __init__(self, share: tuple[int, int]) -> None:
        self.share = share
        self._rules: dict[tuple[int, int], tuple[OpRule, OpRule, OpRule]] = {}

    def size(self, a: int, b: int) -> int:
        grown, rest = divmod((b - a) * self.share[0], self.share[1])
        if rest or a + grown < 0:
            raise fail("sizes", "affine in the rows of the batch", (a, b))
        return a + grown

    def sizes(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        if len(a) != len(b):
            raise fail("shapes", "as many dims for every number of rows", (a, b))
        return tuple(self.size(x, y) for x, y in zip(a, b, strict=True))

    def node(self, a: OpNode, b: OpNode) -> OpNode:
        if (a.op, a.role, a.phase, a.inputs, a.outputs) != (
            *(b.op, b.role, b.phase, b.inputs, b.outputs),
        ):
            raise fail("nodes", "the same for every number of rows", (a.name, b.name))
        return dataclasses.replace(a, rule=self.rule(a.rule, b.rule))

    def rule(self, a: OpRule, b: OpRule) -> OpRule:
        key = (id(a), id(b))
        if key not in self._rules:
            self._rules[key] = (a, b, self._made(a, b))
        return self._rules[key][2]

    def _made(self, a: OpRule, b: OpRule) -> OpRule:
        if (a.inputs, a.outputs, a.linear) != (b.inputs, b.outputs, b.linear):
            raise fail("rules", "the same for every number of rows", (a, b))
        factors = tuple(self.factor(x, y) for x, y in zip(a.factors, b.factors, strict=True))
        flops = self.size(a.flops_per_point, b.flops_per_point)
        rows, columns, depth = self.sizes(a.inner, b.inner)
        inner = (rows, columns, depth)
        return dataclasses.replace(a, factors=factors, flops_per_point=flops, inner=inner)

    def factor(self, a: Factor, b: Factor) -> Factor:
        if (a.name, a.kind, a.even) != (b.name, b.kind, b.even):
            raise fail("factors", "the same for every number of rows", (a, b))
        inner = self.size(a.inner_bytes, b.inner_bytes)
        return dataclasses.replace(a, size=self.size(a.size, b.size), inner_bytes=inner)


def graphs_by_rows(
    graph_of: Callable[[int], OpGraph], sizes: tuple[int, int]
) -> Callable[[int], Any]:
    """A function from rows to graphs that traces twice, and once more only where that is no help.

    Args:
        graph_of: traces so many rows.
        sizes: numbers of rows to trace.

    The function raises:
        ValueError: a model whose shapes do not depend on the rows, or what ``graph_of`` raises.
    """
    traced: dict[int, OpGraph] = {}

    def known(rows: int) -> OpGraph:
        if rows not in traced:
            traced[rows] = graph_of(rows)
        return traced[rows]

    def at(rows: int) -> OpGraph:
        if rows in traced:
            return traced[rows]
        small, large = map(known, sizes)
        grows = [value.shape for value in small.values] != [value.shape for value in large.values]
        hint = "make inputs of as many rows as are asked for"
        check(grows, "inputs", "other shapes for other numbers of rows", "the same", hint)
        try:
            return scaled_graph(small, sizes[0], large, sizes[1], rows)
        except ValueError:
            return known(rows)

    return at
