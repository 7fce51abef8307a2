"""Choices of strategies: equal to the best of all choices, exactly; memory, pins, plans as data."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sharding import Mesh, Partial, Replicate, Shard, strategy_of
from blocks.sharding.intra_op import (
    IntraOpPlan,
    OutOfMemory,
    Problem,
    TableCache,
    Term,
    eliminate,
    minimise,
    pareto,
    pose,
    price,
    solve,
    with_memory,
)
from tests.plan.graphs import mlp
from tests.sharding.alpha_beta import TimedBytes
from tests.sharding.small_problems import all_choices, check_gap, draw
from tests.sharding.test_op_graph import small_graph


def check_gaps_apart(first: int, stop: int) -> str:
    """Many seeds in a process of their own, without the type checks of the test run."""
    code = (
        "from tests.sharding.small_problems import check_gap\n"
        f"for seed in range({first}, {stop}): check_gap(seed)\n"
        "print('no gap')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr


def test_500_small_problems_have_no_gap_to_brute_force():
    assert check_gaps_apart(0, 500) == "no gap"


@pytest.mark.nightly
def test_10_000_small_problems_have_no_gap_to_brute_force():
    assert check_gaps_apart(500, 10_500) == "no gap"


@settings(max_examples=10)
@given(st.integers(20_000, 40_000))
def test_small_problems_with_types_checked(seed):
    check_gap(seed)


@given(st.integers(0, 10_000), st.floats(1, 4096))
def test_eliminating_some_leaves_the_rest_as_it_was(seed, max_entries):
    problem = draw(seed)
    seconds, _ = all_choices(problem)
    done = eliminate(problem, max_entries=max_entries)
    left = sorted({v for term in done.terms for v in term.variables})
    assert len(left) + len(done.buckets) >= len(problem.seconds)
    best = np.inf
    for choice in itertools.islice(
        itertools.product(*(range(problem.num_labels[v]) for v in left)), 50
    ):
        labels = [0] * len(problem.seconds)
        for v, label in zip(left, choice, strict=True):
            labels[v] = label
        rest = sum(t.seconds[tuple(labels[v] for v in t.variables)] for t in done.terms)
        assert problem.value(done.complete(labels)) == done.seconds + rest
        best = min(best, done.seconds + rest)
    if not left:
        assert best == seconds.min()


def test_equal_blocks_are_worked_out_once():
    """Of equal blocks only what joins them is worked out more than once."""
    rng = np.random.default_rng(0)
    own, inside, across = rng.random(6), rng.random((6, 6)), rng.random((6, 6))
    size = 8

    def tables(num_blocks: int) -> int:
        terms = []
        for first in range(0, size * num_blocks, size):
            pairs = itertools.pairwise(range(first, first + size))
            terms += [Term(pair, inside) for pair in pairs]
            terms += [Term((first, v), inside) for v in range(first + 2, first + size)]
            if first:
                terms.append(Term((first - size, first), across))
        cache = TableCache()
        assert not eliminate(Problem((own,) * (size * num_blocks), tuple(terms)), cache=cache).terms
        cache.check_invariants()
        return cache.num_tables

    assert tables(64) - tables(32) <= 32


def test_nothing_that_may_not_be_chosen_is_chosen():
    walls = np.array([[np.inf, 1.0], [np.inf, np.inf]])
    problem = Problem((np.zeros(2), np.array([0.0, 9.0])), (Term((0, 1), walls),))
    assert minimise(problem).labels == (0, 1)
    shut = Problem(problem.seconds, (Term((0, 1), np.full((2, 2), np.inf)),))
    with pytest.raises(ValueError, match="a choice of labels that is allowed"):
        minimise(shut)
    with pytest.raises(ValueError, match="labels of variable 1"):
        minimise(Problem((np.zeros(1), np.full(2, np.inf))))


def test_problems_that_are_none_are_refused():
    with pytest.raises(ValueError, match="seconds of"):
        Problem((np.zeros(2), np.zeros(3)), (Term((0, 1), np.zeros((3, 2))),))
    with pytest.raises(ValueError, match="variables of a term"):
        Problem((np.zeros(2),), (Term((0, 0), np.zeros((2, 2))),))
    with pytest.raises(ValueError, match="memory"):
        Problem((np.zeros(2),), (), (np.zeros(3),))
    with pytest.raises(ValueError, match="labels"):
        Problem((np.zeros(0),))


# Graphs.


@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("mesh", [Mesh.of(data=2), Mesh.of(data=4)], ids=str)
def test_plan_of_a_graph_is_the_best_of_all(mesh, num_microbatches):
    graph = small_graph()
    cost = TimedBytes(mesh, (3,), (1,))
    posed = pose(graph, mesh, cost, num_microbatches=num_microbatches)
    assert np.prod(posed.problem.num_labels) < 1e6
    seconds, held = all_choices(posed.problem)
    plan = solve(graph, mesh, cost, num_microbatches=num_microbatches)
    assert plan.objective_s == pytest.approx(seconds.min(), rel=1e-12)
    assert plan.gap < 1e-12
    for cap in np.unique(held)[::7]:
        best = seconds[held <= cap].min()
        plan = solve(graph, mesh, cost, memory_cap=cap, num_microbatches=num_microbatches)
        assert plan.memory_bytes <= cap
        assert plan.objective_s == pytest.approx(best, rel=1e-12)
        assert plan.gap < 1e-12


def test_what_the_problem_says_is_what_the_plan_costs():
    mesh = Mesh.of(data=2, tensor=2)
    graph = mlp(3, 16, 8)
    cost = TimedBytes(mesh, (1, 2), (3, 1))
    posed = pose(graph, mesh, cost, num_microbatches=3, in_flight=2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = [int(rng.integers(n)) for n in posed.problem.num_labels]
        for copy in posed.hints.copies:  # the best shared copies for the strategies drawn
            each = [[*labels] for _ in range(posed.problem.num_labels[copy.variable])]
            for label, one in enumerate(each):
                one[copy.variable] = label
            labels = min(each, key=posed.problem.value)
        chosen = posed.strategies(labels)
        total = price(graph, chosen, mesh, cost)
        seconds = total.forward_s + total.backward_s + total.step_s / 3
        assert posed.problem.value(labels) == pytest.approx(seconds, rel=1e-12)
        held = total.fixed_bytes + 2 * total.flight_bytes
        assert posed.problem.bytes(labels) == pytest.approx(held)


def test_json_both_ways():
    mesh = Mesh.of(data=2, tensor=2)
    plan = solve(mlp(2), mesh, TimedBytes(mesh, (1, 1), (1, 1)))
    assert IntraOpPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ValueError, match="intra-op plan"):
        IntraOpPlan.from_json({"mesh": mesh.to_json()})


def test_pins_are_kept_and_the_rest_is_solved_around_them():
    mesh = Mesh.of(data=2, tensor=2)
    graph = mlp(2, 64, 32)
    cost = TimedBytes(mesh, (1, 1), (1, 1))
    free = solve(graph, mesh, cost)
    names = [node.name for node in graph.nodes]
    sharded = (Shard(1), Replicate())
    node = graph.nodes[names.index("mm_1")]
    rows = strategy_of(node.rule, (0, 0))
    plan = solve(graph, mesh, cost, pins={"layers.0.weight": sharded, "mm_1": rows})
    assert plan.placements(graph, "layers.0.weight") == sharded
    assert plan.strategies[names.index("mm_1")] == rows
    assert plan.objective_s >= free.objective_s
    whole = dict(zip(names, free.strategies, strict=True))
    again = solve(graph, mesh, cost, pins=whole)
    assert again.strategies == free.strategies
    end = {"output": ((Replicate(), Replicate()))}
    assert (
        solve(graph, mesh, cost, pins=end).strategies[names.index("output")].inputs[0]
        == end["output"]
    )


def test_pins_that_cannot_be_kept_are_refused():
    mesh = Mesh.of(data=2)
    graph, cost = mlp(1), TimedBytes(mesh, (1,), (1,))
    with pytest.raises(ValueError, match=r"pin of layers\.0\.weight .*one of .*got P\(sum\)"):
        solve(graph, mesh, cost, pins={"layers.0.weight": (Partial(),)})
    with pytest.raises(ValueError, match="in_flight: expected a positive number, got 0"):
        solve(graph, mesh, cost, in_flight=0)
    with pytest.raises(ValueError, match="pin: expected the name of a node or a value"):
        solve(graph, mesh, cost, pins={"layers.1": (Replicate(),)})
    with pytest.raises(ValueError, match="pin of x: expected 1 axes, got 2"):
        solve(graph, mesh, cost, pins={"x": (Replicate(), Replicate())})
    with pytest.raises(ValueError, match=r"strategies of mm_0 \(mm\)"):
        solve(graph, mesh, cost, allowed=lambda node, strategy: node.op != "mm")


def test_the_least_memory_is_named_when_nothing_fits():
    mesh = Mesh.of(data=2)
    graph, cost = mlp(2, 8, 8), TimedBytes(mesh, (1,), (1,))
    with pytest.raises(OutOfMemory) as caught:
        solve(graph, mesh, cost, memory_cap=10)
    least = caught.value.least_bytes
    assert str(round(least - 10)) in str(caught.value)
    assert solve(graph, mesh, cost, memory_cap=least).memory_bytes == least
    with pytest.raises(OutOfMemory):
        solve(graph, mesh, cost, memory_cap=least - 1)


def test_blocks_that_are_alike_may_be_cut_differently():
    """With memory for some of twelve equal layers whole, some stay whole: near the bound."""
    mesh = Mesh.of(data=4)
    graph, cost = mlp(12, 1024, 64), TimedBytes(mesh, (1,), (1,))
    most = solve(graph, mesh, cost).memory_bytes
    with pytest.raises(OutOfMemory) as caught:
        solve(graph, mesh, cost, memory_cap=1)
    least = caught.value.least_bytes
    for share in (0.1, 0.3, 0.5, 0.9):
        plan = solve(graph, mesh, cost, memory_cap=least + share * (most - least))
        assert plan.gap < 1e-3, share


def test_with_memory_and_no_cap_that_binds_is_free():
    problem = draw(3)
    assert with_memory(problem, 1e9) == minimise(problem)


@settings(max_examples=20)
@given(st.integers(0, 3000))
def test_pareto_points_are_the_corners_of_the_hull(seed):
    problem = draw(seed)
    seconds, held = all_choices(problem)
    found = pareto(problem, 50)
    assert found[0].seconds == seconds.min()
    for point in found:
        assert (problem.value(point.labels), problem.bytes(point.labels)) == point[:2]
    for quick, small in itertools.pairwise(found):
        assert quick.seconds < small.seconds
        assert quick.bytes > small.bytes
        price = (small.seconds - quick.seconds) / (quick.bytes - small.bytes)
        line = quick.seconds + price * quick.bytes
        assert (seconds + price * held).min() == pytest.approx(line, rel=1e-9)
    if len(found) > 1:
        assert found[-1].bytes == held[np.isfinite(seconds)].min()
        assert pareto(problem, 1)[0].seconds == found[0].seconds
