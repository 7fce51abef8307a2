"""Figures of the joint planner: bubble under a memory cap, bounds, brute force, its time."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from benches.bench_pipeline_plan import cpu_s
from benches.figures.row import Measured, Row
from benches.trade_curve import CUTS, SETTING, curves, greedy, searched
from blocks.pipeline import MemorySizes, flop_cost, plan_pipeline

COMMAND = "python -m benches.figures --area pipeline"
CURVE = "python -m benches.trade_curve"
SHOWN = (1.0, 1.25, 1.4375, 1.5, 1.75, 2.0, 2.5)
PLANNED = ((4, 4096, 16), (8, 32768, 32), (16, 131072, 32))


def rows() -> Iterator[Row]:
    claim = f"bubble planned within 1.7 A, {SETTING}, simulated"
    yield Row(claim, "<= 3 %", CURVE, lambda: _bubble(1.7, "equal-cost slices", 0.03))
    claim = f"bubble planned for uniform slices within 2 A (greedy order beside it), {SETTING}"
    yield Row(f"{claim}, simulated", "<= 2.5 %", CURVE, _uniform)
    for name in CUTS:
        claim = "bubble under a cap of " + ", ".join(f"{cap:g}" for cap in SHOWN) + f" A, {name}"
        yield Row(f"{claim} (lower bound), simulated", "", CURVE, lambda name=name: _curve(name))
    claim = "planned orders against the best of all, small random steps: worst, of cases"
    yield Row(claim, "<= 1 % longer", COMMAND, _brute_force)
    claim = "CPU time of plan_pipeline, P = 16, T = 128k, S = 32, 14 cuts, split or whole backwards"
    yield Row(claim, "<= 1 s", COMMAND, _planning_time)


def _bubble(cap: float, name: str, most: float) -> Measured:
    found = searched(cap, CUTS[name])
    text = f"{found.bubble:.2%} at {found.peak:.2f} A (simulated; no order: {found.bound:.2%})"
    return Measured(text.replace("%", " %"), found.bubble <= most and found.peak <= cap)


def _uniform() -> Measured:
    found, waits = searched(2.0, CUTS["uniform slices"]), greedy(2.0)
    text = f"{found.bubble:.2%} at {found.peak:.2f} A ({waits.bubble:.1%}; simulated)"
    return Measured(text.replace("%", " %"), found.bubble <= 0.025 and found.peak <= 2.0)


def _curve(name: str) -> Measured:
    points = curves(SHOWN)[name]
    text = ", ".join(f"{p.bubble:.1%} ({p.bound:.1%})" for p in points)
    return Measured(text.replace("%", " %"), None)


def _brute_force() -> Measured:
    from blocks.pipeline.plan.order_search import search_order
    from blocks.pipeline.plan.starts import serial_peak
    from tests.pipeline.plan.brute_force import best_makespan
    from tests.pipeline.plan.draws import Shape

    rng, worst, count = random.Random(0), 0.0, 300
    for _ in range(count):
        shape = Shape(
            num_ranks=rng.randint(1, 3),
            num_slices=rng.randint(1, 2),
            num_chunks=1,
            splits=False,
            recomputes=rng.random() < 0.5,
            sends=rng.random() < 0.5,
            seed=rng.getrandbits(32),
        )
        costs, sequences = shape.costs(), 2 if shape.num_slices > 1 else 3
        cap = serial_peak(costs, sequences) * (1 + rng.random())
        order = search_order(costs, sequences, cap)
        assert order is not None, "the cap holds the order of least memory"
        worst = max(worst, order.makespan_s / best_makespan(costs, sequences, cap) - 1)
    return Measured(f"{worst:.2%} of {count}".replace("%", " %"), worst <= 0.01)


def _planning_time() -> Measured:
    texts, slowest = [], 0.0
    for case in PLANNED:
        seconds = max(cpu_s(_Plan(*case, cap), 2) for cap in (1.3, 2.5))
        slowest = max(slowest, seconds)
        texts.append(f"P={case[0]}, T={case[1]}: {seconds:.2f} s")
    return Measured("; ".join(texts), slowest <= 1)


class _Plan(NamedTuple):
    """A planning problem of a 70B-like model; ``cap`` in activations of a sequence on a rank."""

    num_ranks: int
    seq_len: int
    num_sequences: int
    cap: float

    def __call__(self) -> None:
        cost = flop_cost(
            8192,
            flops_per_s=4e14,
            num_layers=80 // self.num_ranks,
            fixed_s=2e-5,
            floor=256,
            latency_s=1e-5,
            bytes_per_s=5e10,
        )
        sizes = MemorySizes(
            activations=lambda stage, num_tokens, start: 34 * num_tokens,
            keys_values=lambda stage, num_tokens, start: 4 * num_tokens,
            accumulators=lambda stage, num_tokens, start: 8 * num_tokens,
            weight_inputs=lambda stage, num_tokens, start: 20 * num_tokens,
        )
        most = self.cap * 46 * self.seq_len
        plan = plan_pipeline(
            cost,
            self.seq_len,
            self.num_sequences,
            self.num_ranks,
            sizes=sizes,
            memory_cap=most,
            granularity=128,
        )
        assert max(plan.peak_bytes) <= most * (1 + 1e-9)
