"""Figures of the choice of strategies: gaps, knots, time."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from benches.figures.row import Measured, Row
from blocks.sharding import AlphaBeta, Mesh, MeshCost, OpGraph, bundled_cluster
from blocks.sharding.cost import ALPA_TIES
from blocks.sharding.intra_op import (
    OutOfMemory,
    Posed,
    Problem,
    Term,
    minimise,
    pose,
    solve,
    with_memory,
)
from blocks.sharding.intra_op.elimination_order import Cliques
from recipes.plan.families import family
from recipes.plan.trace import trace
from tests.plan.graphs import mlp
from tests.sharding.small_problems import all_choices, check_gap, draw
from tests.sharding.test_intra_op_plans import once
from tests.sharding.training_steps import decoder_step, mlp_step

COMMAND = "python -m benches.figures --area plan"

TINY = tuple(
    f"{name}:tiny"
    for name in ("llama", "gpt2", "bert", "mixtral", "static-moe", "t5", "wide-resnet")
)
LARGE = ("llama:8b", "gpt2:2.6b", "wide-resnet:1b")


def rows() -> Iterator[Row]:
    yield Row(
        "intra-op: choices of up to 10 variables x 6 labels equal the best of all, without memory "
        "and under two or three caps",
        "500 of 500",
        COMMAND,
        lambda: _brute_force(range(500)),
    )
    yield Row(
        "the same, many",
        "10,000 of 10,000",
        COMMAND + " --nightly",
        lambda: _brute_force(range(500, 10_500)),
        nightly=True,
    )
    yield Row(
        "Alpa's closed forms of 2- and 12-layer MLPs, data and model parallel, on 4 ranks",
        "8 of 8 exact",
        COMMAND,
        _closed_forms,
    )
    yield Row(
        "2,000 variables of 12 labels in a chain with links, eliminated: CPU time",
        "<= 1 s",
        COMMAND,
        _chain,
    )
    yield Row(
        "80 equal layers against 8: CPU time of solving",
        "<= 12x",
        COMMAND,
        _equal_layers,
    )
    yield Row(
        "decoder block on 4 H100 of one node (simulated): variables that one elimination joins at "
        "most, its table, gap",
        "gap 0",
        COMMAND,
        lambda: _decoder((4,)),
    )
    yield Row(
        "the same on 2 x 4 of them",
        "gap <= 0.1 %",
        COMMAND,
        lambda: _decoder((2, 4)),
    )
    yield Row(
        "decoder block on 2 x 4 H100 under nine caps on memory: largest gap to the proved bound",
        "<= 1 %",
        COMMAND,
        _memory_gap_on_two_axes,
    )
    yield Row(
        "seven traced families, tiny sizes, on 2 x 4 H100: largest gap to the proved bound",
        "<= 0.1 %",
        COMMAND,
        lambda: _families(TINY, ((2, 4),), 8, 64),
    )
    yield Row(
        "Llama 8B, GPT 2.6B, Wide-ResNet 1B whole, on 2 x 4, 4 x 8 and 8 x 8 H100: largest gap to "
        "the proved bound",
        "<= 0.1 %",
        COMMAND + " --nightly",
        lambda: _families(LARGE, ((2, 4), (4, 8), (8, 8)), 64, 1024),
        nightly=True,
    )
    yield Row(
        "12 equal layers under nine caps on memory: largest gap to the proved bound",
        "<= 1 %",
        COMMAND,
        _memory_gap,
    )


def _brute_force(seeds: range) -> Measured:
    equal, most = 0, 0
    for seed in seeds:
        check_gap(seed)  # raises at the first gap
        equal += 1
        most = max(most, all_choices(draw(seed))[0].size)
    return Measured(f"{equal:,} of {len(seeds):,}, up to {most:,} choices", equal == len(seeds))


def _closed_forms() -> Measured:
    right, cases = 0, 0
    for num_layers in (2, 12):
        for batch, hidden in ((1024, 128), (128, 1024)):
            for sizes in ((4, 1), (1, 4)):
                mesh = Mesh(("a", "b"), sizes)
                cost = AlphaBeta(mesh, (1, 1), (1, 1), ALPA_TIES)
                graph = mlp_step(num_layers, batch, hidden)
                plan = solve(graph, mesh, cost, allowed=once(mesh))
                data = batch > hidden
                num_bytes = 4 * hidden * (hidden if data else batch)
                count = num_layers if data else num_layers - 1
                closed = count * (1 + 2 * 3 / 4 * num_bytes + 0.01)
                exact = abs(plan.objective_s - closed) <= 1e-12 * closed
                right += exact and plan.counts == {"all_reduce": count}
                cases += 1
    return Measured(f"{right} of {cases} exact", right == cases)


def _chain() -> Measured:
    rng = np.random.default_rng(0)
    count, labels = 2000, 12
    terms = [Term((v, v + 1), rng.random((labels, labels))) for v in range(count - 1)]
    terms += [
        Term((v, v + 2), rng.random((labels, labels)))
        for v in range(count - 2)
        if rng.random() < 0.43
    ]
    problem = Problem(tuple(rng.random(labels) for _ in range(count)), tuple(terms))
    begin = time.process_time()
    found = minimise(problem)
    took = time.process_time() - begin
    exact = found.seconds == found.bound
    return Measured(f"{took:.2f} s, {len(terms):,} terms, exact", exact and took <= 1)


def _equal_layers() -> Measured:
    mesh = Mesh.of(a=2, b=4)
    cost = AlphaBeta(mesh, (1, 1), (1, 1), ALPA_TIES)
    times = []
    for num_layers in (8, 80):
        posed = pose(mlp(num_layers, 64, 64), mesh, cost)
        begin = time.process_time()
        found = minimise(posed.problem, hints=posed.hints)
        times.append(time.process_time() - begin)
        assert found.bound == found.seconds, "exact"
    ratio = times[1] / times[0]
    return Measured(f"{times[0]:.2f} s and {times[1]:.2f} s, {ratio:.1f}x", ratio <= 12)


def _decoder(sizes: tuple[int, ...]) -> Measured:
    graph = decoder_step(batch=4, length=128, hidden=512, heads=8)
    posed = _posed(graph, sizes)
    joined, entries = _knot(posed)
    begin = time.process_time()
    found = minimise(posed.problem, hints=posed.hints)
    took = time.process_time() - begin
    gap = (found.seconds - found.bound) / found.seconds
    text = f"{joined} joined, 2^{np.log2(entries):.0f} entries, gap {gap:.1%}, {took:.1f} s CPU"
    return Measured(text, gap == 0 if len(sizes) == 1 else gap <= 1e-3)


def _posed(graph: OpGraph, sizes: tuple[int, ...]) -> Posed:
    mesh = Mesh(("a", "b")[: len(sizes)], sizes)
    nodes = -(-int(np.prod(sizes)) // 8)
    return pose(graph, mesh, MeshCost(bundled_cluster("8xH100", num_nodes=nodes), mesh))


def _knot(posed: Posed) -> tuple[int, float]:
    """Variables of more than one label that one table is over, and its entries."""
    counts = posed.problem.num_labels
    groups = [tuple(v for v in t.variables if counts[v] > 1) for t in posed.problem.terms]
    cliques = Cliques.of(counts, groups)
    several = np.array(counts)[cliques.members] > 1
    joined = int(np.add.reduceat(several, cliques.starts).max()) - 1
    return joined, cliques.largest(counts)


def _families(
    names: Sequence[str], meshes: Sequence[tuple[int, ...]], batch_size: int, seq_len: int
) -> Measured:
    gaps, took = [], 0.0
    for name in names:
        model = family(name)
        graph = trace(model.make, (), model.inputs(batch_size, seq_len)).graph
        for sizes in meshes:
            posed = _posed(graph, sizes)
            begin = time.process_time()
            found = minimise(posed.problem, hints=posed.hints)
            took += time.process_time() - begin
            gaps.append((found.seconds - found.bound) / found.seconds)
    exact = sum(gap == 0 for gap in gaps)
    text = f"{max(gaps):.3%}, none at {exact} of {len(gaps)}, {took:.1f} s CPU in all"
    return Measured(text, max(gaps) <= 1e-3)


def _memory_gap_on_two_axes() -> Measured:
    posed = _posed(decoder_step(batch=4, length=128, hidden=512, heads=8), (2, 4))
    problem = posed.problem
    most = problem.bytes(minimise(problem, hints=posed.hints).labels)
    least = sum(float(held.min()) for held in problem.memory)
    gaps = []
    begin = time.process_time()
    for tenth in range(1, 10):
        cap = least + tenth / 10 * (most - least)
        found = with_memory(problem, cap, hints=posed.hints)
        gaps.append((found.seconds - found.bound) / found.seconds)
    took = time.process_time() - begin
    text = f"{max(gaps):.2%}, none at {sum(g < 1e-9 for g in gaps)} of 9, {took:.1f} s CPU in all"
    return Measured(text, max(gaps) <= 0.01)


def _memory_gap() -> Measured:
    mesh = Mesh.of(data=4)
    graph, cost = mlp(12, 1024, 64), AlphaBeta(mesh, (1,), (1,), ALPA_TIES)
    most = solve(graph, mesh, cost, allowed=once(mesh)).memory_bytes
    least = most
    try:
        solve(graph, mesh, cost, allowed=once(mesh), memory_cap=1)
    except OutOfMemory as error:
        least = error.least_bytes
    gaps = []
    for tenth in range(1, 10):
        cap = least + tenth / 10 * (most - least)
        gaps.append(solve(graph, mesh, cost, allowed=once(mesh), memory_cap=cap).gap)
    return Measured(
        f"{max(gaps):.2%}, none at {sum(g < 1e-9 for g in gaps)} of 9", max(gaps) <= 0.01
    )
