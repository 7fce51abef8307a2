"""Choices of strategies against an integer program solver, which knows nothing of elimination."""

from typing import Any

import highspy
import numpy as np
import pytest

from blocks.sharding import CostModel, Mesh, MeshCost, OpGraph, bundled_cluster
from blocks.sharding.intra_op import Posed, Problem, Term, minimise, pose, with_memory
from blocks.sharding.intra_op.reads import reads_of
from tests.sharding.training_steps import decoder_step, experts_step, mlp_step


def draw(seed: int, num_variables: int, num_labels: int) -> Problem:
    """A chain with links across it."""
    rng = np.random.default_rng(seed)
    pairs = [(v, v + 1) for v in range(num_variables - 1)]
    pairs += [(v, v + int(rng.integers(2, 6))) for v in range(0, num_variables - 6, 2)]
    terms = tuple(Term(pair, rng.random((num_labels, num_labels))) for pair in pairs)
    seconds = tuple(rng.random(num_labels) for _ in range(num_variables))
    memory = tuple(rng.random(num_labels) for _ in range(num_variables))
    return Problem(seconds, terms, memory)


def integer_program(problem: Problem, memory_cap: float | None) -> float:
    """One variable for every label, one for every pair of labels of a term; the least sum."""
    solver: Any = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 1e-9)
    labels = [[solver.addBinary(obj=float(c)) for c in table] for table in problem.seconds]
    for own in labels:
        solver.addConstr(sum(own[1:], start=own[0] + 0) == 1)
    for (first, second), table in problem.terms:
        both = [[solver.addVariable(lb=0, obj=float(c)) for c in row] for row in table]
        for row, label in zip(both, labels[first], strict=True):
            solver.addConstr(sum(row[1:], start=row[0] + 0) == label)
        for column, label in zip(zip(*both, strict=True), labels[second], strict=True):
            solver.addConstr(sum(column[1:], start=column[0] + 0) == label)
    if memory_cap is not None:
        held = [
            float(number) * label
            for own, numbers in zip(labels, problem.memory, strict=True)
            for label, number in zip(own, numbers, strict=True)
        ]
        solver.addConstr(sum(held[1:], start=held[0] + 0) <= memory_cap)
    solver.run()
    return solver.getInfo().objective_function_value


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_an_integer_program(seed):
    problem = draw(seed, num_variables=24, num_labels=5)
    found = minimise(problem)
    assert found.seconds == found.bound
    assert found.seconds == pytest.approx(integer_program(problem, None), rel=1e-7)
    cap = 0.5 * problem.bytes(found.labels)
    tight = with_memory(problem, cap)
    assert problem.bytes(tight.labels) <= cap
    assert tight.seconds - tight.bound <= 0.01 * tight.bound
    assert tight.seconds == pytest.approx(integer_program(problem, cap), rel=1e-7)


def program_of_placements(graph: OpGraph, posed: Posed, cost: CostModel) -> float:
    """Written from the graph: a variable for every strategy, for every pair of placements that a
    maker and a reader have for a value, and for every resharding, which is paid once."""
    solver: Any = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", 1e-9)
    scale = 1e3
    labels = []
    for of in posed.labels:
        own = [solver.addBinary(obj=scale * float(s)) for s in of.seconds]
        solver.addConstr(sum(own[1:], start=own[0] + 0) == 1)
        labels.append(own)
    for reads in reads_of(graph):
        value = graph.values[reads.value]
        made = [s.outputs[reads.maker_place] for s in posed.labels[reads.maker].strategies]
        moved: dict[tuple, Any] = {}
        for reader, places in reads.readers:
            every = posed.labels[reader].strategies
            for place in places or (None,):
                wanted = [s.outputs[0] if place is None else s.inputs[place] for s in every]
                pairs = {(p, q): solver.addVariable(lb=0) for p in set(made) for q in set(wanted)}
                for p in set(made):
                    chosen = [x for x, m in zip(labels[reads.maker], made, strict=True) if m == p]
                    row = [pairs[p, q] for q in set(wanted)]
                    solver.addConstr(sum(row[1:], start=row[0] + 0) == sum(chosen[1:], chosen[0]))
                for q in set(wanted):
                    chosen = [x for x, w in zip(labels[reader], wanted, strict=True) if w == q]
                    row = [pairs[p, q] for p in set(made)]
                    solver.addConstr(sum(row[1:], start=row[0] + 0) == sum(chosen[1:], chosen[0]))
                for (p, q), pair in pairs.items():
                    if (p, q) not in moved:
                        took = cost.reshard_s(value.shape, value.itemsize, p, q) if p != q else 0.0
                        moved[p, q] = solver.addVariable(lb=0, obj=scale * float(took))
                    solver.addConstr(moved[p, q] >= pair)
    solver.run()
    return solver.getInfo().objective_function_value / scale


@pytest.mark.parametrize(
    "graph",
    [mlp_step(3, 64, 64), experts_step(4, 64, 8, 16, 64), decoder_step(4, 32, 64, 4)],
    ids=["mlp", "experts", "decoder"],
)
def test_two_axes_equal_to_an_integer_program(graph):
    """Settled by the bound: no table is let grow large."""
    mesh = Mesh.of(a=2, b=2)
    cost = MeshCost(bundled_cluster("8xH100"), mesh)
    posed = pose(graph, mesh, cost)
    found = minimise(posed.problem, hints=posed.hints, max_entries=2**10)
    assert found.seconds == found.bound
    assert found.seconds == pytest.approx(program_of_placements(graph, posed, cost), rel=1e-7)
