"""Strategies against the operation itself: what the ranks compute makes the whole."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sharding import (
    Factor,
    Mesh,
    OpRule,
    Partial,
    ShardingSpec,
    local_sizes,
    strategies,
    strategy_of,
)

MESHES = st.sampled_from([Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2), Mesh.of(a=1, b=3)])


def matmul_rule(rows: int, columns: int, inner: int) -> OpRule:
    factors = (Factor("row", rows), Factor("column", columns), Factor("inner", inner, "sum"))
    return OpRule(factors, ((0, 2), (2, 1)), ((0, 1),), linear=((0,), (1,)), flops_per_point=2)


@given(MESHES, *[st.integers(4, 9)] * 3)
def test_matmul_parts_make_the_whole(mesh, rows, columns, inner):
    rule = matmul_rule(rows, columns, inner)
    rng = np.random.default_rng(rows * 100 + columns * 10 + inner)
    a, b = rng.integers(-9, 9, (rows, inner)), rng.integers(-9, 9, (inner, columns))
    for strategy in strategies(rule, mesh):
        result, flops = np.zeros((rows, columns), int), 0
        for rank in mesh.ranks:
            parts = [
                part(x, ShardingSpec(mesh, placements), rank)
                for x, placements in zip((a, b), strategy.inputs, strict=True)
            ]
            product, spec = parts[0] @ parts[1], ShardingSpec(mesh, strategy.outputs[0])
            assert product.shape == spec.local_shape((rows, columns), rank)
            sizes = local_sizes(rule, strategy, mesh, rank)
            assert rule.flops_of(sizes) == 2 * parts[0].shape[0] * product.shape[1] * sizes[2]
            flops += rule.flops_of(sizes)
            if counts(strategy.outputs[0], mesh, rank):
                run = spec.runs((rows, columns), rank)
                result[run[0].start : run[0].stop, run[1].start : run[1].stop] += product
        assert (result == a @ b).all(), strategy
        copies = np.prod([s for s, c in zip(mesh.sizes, strategy.choices, strict=True) if c < 0])
        assert flops == rule.flops() * copies


def part(x, spec, rank):
    """What a rank holds; of a sum the first rank holds all and the others zeros."""
    addend = all(
        not isinstance(p, Partial) or at == 0
        for p, at in zip(spec.placements, spec.mesh.coordinates(rank), strict=True)
    )
    runs = spec.runs(x.shape, rank)
    return x[tuple(slice(run.start, run.stop) for run in runs)] * int(addend)


def counts(placements, mesh, rank):
    """Whether this rank's output is added in: replicas count once."""
    pairs = zip(placements, mesh.coordinates(rank), strict=True)
    return all(str(p) != "R" or at == 0 for p, at in pairs)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_no_rank_is_without_work(size, n, m):
    mesh = Mesh.of(a=n, b=m)
    rule = OpRule((Factor("row", size),), ((0,),), ((0,),), linear=((0,),))
    for strategy in strategies(rule, mesh):
        for rank in mesh.ranks:
            assert local_sizes(rule, strategy, mesh, rank)[0] > 0


def test_even_factors_are_cut_evenly_and_whole_ones_not_at_all():
    rule = OpRule((Factor("head", 6, even=True), Factor("inner", 8, "whole")), ((0, 1),), ((0,),))
    choices = {s.choices for s in strategies(rule, Mesh.of(a=4))}
    assert choices == {(-1,)}
    choices = {s.choices for s in strategies(rule, Mesh.of(a=2, b=3))}
    assert choices == set(itertools.product((-1, 0), repeat=2))


def test_choices_that_the_rule_lacks_are_refused():
    rule = matmul_rule(4, 4, 4)
    for choice in (3, -4):
        with pytest.raises(ValueError, match="choice: expected -3 to 2"):
            strategy_of(rule, (choice,))
