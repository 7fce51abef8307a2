"""Figures of schedules as data: families, closed forms, faults refused, simulated bubbles."""

import random
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

from benches.figures.row import Measured, Row
from blocks.pipeline import (
    SCHEDULES,
    Action,
    Kind,
    MemorySizes,
    Schedule,
    Timeline,
    check_schedule,
    lower,
    peak_bytes,
    simulate,
    unit_cost,
)
from blocks.pipeline.timeline import Number

COMMAND = "python -m benches.figures --area pipeline"
RANKS, SEQUENCES, SLICES = 8, 32, 16
SETTING = "P=8, alpha=0.5, S=32, M=16, BW=2F"


def rows() -> Iterator[Row]:
    yield Row("families of schedules in one form", ">= 12", COMMAND, _families)
    claim = "simulated times and peaks equal to closed forms, in fractions, 13 families"
    yield Row(claim, "all", COMMAND, _closed_forms)
    claim = f"bubble of uniform Seq1F1B, {SETTING}, simulated"
    yield Row(claim, "25.3 %", COMMAND, lambda: _bubble("seq1f1b", SLICES, 0.253))
    claim = f"bubble of 1F1B, {SETTING}, simulated"
    yield Row(claim, "17.9 %", COMMAND, lambda: _bubble("one_f_one_b", 1, 0.179))
    claim = f"bubble of uniform slices, each rank 3 ahead of the next, {SETTING}, simulated"
    yield Row(claim, "<= 3 %", COMMAND, lambda: _reach(3))
    claim = "bubble of token zero bubble, uniform slices, F=L+A, B=L+2.5A, W=L, simulated"
    yield Row(claim, "", COMMAND, lambda: _zero_bubble(SLICES + RANKS - 1))
    yield Row(f"{claim}, more memory", "", COMMAND, lambda: _zero_bubble(SLICES + 2 * RANKS - 2))
    claim = "order faults refused before launch: dropped, doubled, swapped, misdirected"
    yield Row(claim, "all", COMMAND, _faults)
    claim = "random programs of up to 4 ranks, with sends and receives, proved and simulated"
    yield Row(claim, "2,000 pass", COMMAND, _random_programs)
    claim = (
        "peak bytes predicted from lifetimes against tensors counted, worst of 5 families x 4 ranks"
    )
    yield Row(claim, "<= 2 %", COMMAND, _peak_bytes)
    yield Row("CPU time to simulate 64 ranks, 128,000 actions", "<= 1 s", COMMAND, _speed)


def _families() -> Measured:
    for name, make in SCHEDULES.items():
        made = make(4, (2,) * 6, num_chunks=2 if name == "zb_v" else 1)
        check_schedule(lower(made), canonical=True)
    return Measured(f"{len(SCHEDULES)}", len(SCHEDULES) >= 12)


def _closed_forms() -> Measured:
    from tests.pipeline.closed_forms import cases

    found = [case.expected == case.found for family in SCHEDULES for case in cases(family)]
    return Measured(f"{sum(found):,} of {len(found):,}", all(found))


def _seconds(num_slices: int, full: bool) -> Callable[[Action], Number]:
    """A sequence costs 1 forward, half of it attention; slices of equal length.

    full: backwards twice the forward; else L + 2.5 A and, for the weights, L alone.
    """
    options = {"input_gradient": (1, 1), "weight_gradient": (1, 1)} if full else {}
    cost = unit_cost(Fraction(1, 2), SLICES, **options)
    width = SLICES // num_slices
    return lambda action: cost.seconds(action.kind, width, action.slice * width)


def _bubble(family: str, num_slices: int, expected: float) -> Measured:
    schedule = SCHEDULES[family](RANKS, (num_slices,) * SEQUENCES)
    found = simulate(schedule, _seconds(num_slices, full=True)).bubble
    return Measured(_percent(found), abs(found - expected) < 0.0005)


def _reach(reach: int) -> Measured:
    schedule = SCHEDULES["seq1f1b"](RANKS, (SLICES,) * SEQUENCES, reach=reach)
    found = simulate(schedule, _seconds(SLICES, full=True)).bubble
    return Measured(f"{_percent(found)} at {_kept(schedule):.2f} A", found <= 0.03)


def _zero_bubble(max_kept: int) -> Measured:
    seconds = _seconds(SLICES, full=False)
    sizes = (RANKS, (SLICES,) * SEQUENCES)
    plain = simulate(SCHEDULES["seq1f1b"](*sizes), seconds).bubble
    schedule = SCHEDULES["token_zero_bubble"](*sizes, duration=seconds, max_kept=max_kept)
    found = simulate(schedule, seconds).bubble
    text = f"{_percent(found)} at {_kept(schedule):.2f} A, Seq1F1B {_percent(plain)}"
    return Measured(text, None)


def _percent(share: Number) -> str:
    return f"{100 * float(share):.1f} %"


def _kept(schedule: Schedule) -> float:
    """Peak in sequences' worth: activations, and as much again for what weight gradients need."""

    def share(stage: int, num_tokens: int, start: int) -> Fraction:
        return Fraction(num_tokens, SLICES)

    sizes = MemorySizes(activations=share, weight_inputs=share)
    return float(max(peak_bytes(schedule, sizes)))


def _faults() -> Measured:
    from tests.pipeline.faults import FAMILIES, count_refused

    every = [count_refused(name, num_chunks) for name, num_chunks in FAMILIES]
    count, missed = sum(c for c, _ in every), sum(len(m) for _, m in every)
    return Measured(f"{count - missed:,} of {count:,}", not missed)


def _random_programs() -> Measured:
    from tests.pipeline.random_programs import random_schedule

    for seed in range(2000):
        schedule = random_schedule(random.Random(seed), lowered=True)
        check_schedule(schedule)
        simulate(schedule, lambda action: 1)
    return Measured("2,000 pass", True)


def _peak_bytes() -> Measured:
    from tests.pipeline.counted_bytes import NUM_STAGES, error

    families = ("gpipe", "one_f_one_b", "seq1f1b", "zb_h1", "token_zero_bubble")
    errors = {(f, rank): error(f, rank) for f in families for rank in range(NUM_STAGES)}
    worst = max(errors, key=lambda key: errors[key])
    text = f"{100 * errors[worst]:.1f} % ({worst[0]}, rank {worst[1]})"
    return Measured(text, errors[worst] <= 0.02)


def _speed() -> Measured:
    def once() -> tuple[float, Timeline]:
        schedule = SCHEDULES["one_f_one_b"](64, (1,) * 1000)
        began = time.process_time()
        found = simulate(schedule, lambda action: 1 if action.kind is Kind.FORWARD else 2)
        return time.process_time() - began, found

    runs = [once() for _ in range(3)]
    seconds = sorted(second for second, _ in runs)[1]
    exact = runs[0][1].makespan == 3 * (1000 + 63)
    return Measured(f"{seconds:.2f} s", seconds <= 1 and exact)
