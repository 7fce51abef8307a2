"""Figures of the inter-op partition: brute force, bounds, time."""

import functools
import random
import statistics
import time
from collections.abc import Iterator, Sequence

from benches.figures.row import Measured, Row
from benches.inter_op_cases import CAP_BYTES, TIGHT_BYTES, decoder
from blocks.pipeline import DoesNotFit, InterOpPlan, partition_mesh
from tests.pipeline.inter_op.stage_tables import best_simulated, draw

COMMAND = "python -m benches.figures --area plan"
ENOUGH = 10**6
EPSILON = 5e-4
BOTH = ("one_f_one_b", "zb_h1")


def rows() -> Iterator[Row]:
    yield Row(
        "inter-op: simulated step equals the best of all partitions, memory caps, options, "
        "transfers, two device kinds, up to 6 layers x 8 devices",
        "300 of 300",
        COMMAND,
        lambda: _brute_force(range(300), max_layers=6),
    )
    yield Row(
        "the same at 9 layers x 16 devices",
        "all of 3",
        COMMAND,
        lambda: _brute_force((1016, 1018, 1023), max_layers=10, devices_per_host=8),
    )
    yield Row(
        "the same up to 10 layers x 16 devices, many",
        "all of 200",
        COMMAND + " --nightly",
        lambda: _brute_force(range(2000, 2200), max_layers=10, devices_per_host=8),
        nightly=True,
    )
    for names, schedules in (("1F1B and zero bubble", BOTH), ("1F1B alone", BOTH[:1])):
        for cap, most in ((None, 1e-3), (CAP_BYTES, 1e-3), (TIGHT_BYTES, 1e-2)):
            text = f"{cap / 1e9:.0f} GB" if cap else "no memory cap"
            yield Row(
                f"inter-op partition of 80 layers over 512 devices, {names}, 256 "
                f"microbatches, {text}: simulated step over its bound, CPU time",
                f"<= {most:.1%}, <= 8 s",
                COMMAND,
                functools.partial(_timed, 80, 64, 8, cap, most, schedules),
            )
    for num_layers, num_hosts, target in ((32, 8, 10), (1024, 64, 60)):
        yield Row(
            f"inter-op partition of {num_layers:,} layers over {num_hosts * 8} devices, 1F1B and "
            "zero bubble, 256 microbatches, 80 GB: simulated step over its bound, CPU time",
            f"<= {target} s",
            COMMAND,
            lambda sizes=(num_layers, num_hosts), target=target: _timed(*sizes, target),
        )


def _brute_force(
    seeds: Sequence[int], *, max_layers: int, devices_per_host: int | None = None
) -> Measured:
    """Equal makespans, and a bound that proves it; or both find nothing."""
    equal, counted = 0, []
    for seed in seeds:
        drawn = draw(random.Random(seed), max_layers=max_layers, devices_per_host=devices_per_host)
        best, num_plans = best_simulated(drawn)
        counted.append(num_plans)
        try:
            plan = drawn.partition(effort=ENOUGH)
            equal += plan.makespan_s == best and plan.gap <= 1e-12
        except DoesNotFit:
            equal += best == float("inf")
    text = f"{equal} of {len(seeds)}, {statistics.median(counted):,.0f} to {max(counted):,} plans"
    return Measured(text, equal == len(seeds))


def _timed(
    num_layers: int,
    num_hosts: int,
    target: float,
    cap: float | None = CAP_BYTES,
    most: float = float("inf"),
    schedules: Sequence[str] = BOTH,
) -> Measured:
    start = time.process_time()
    plan: InterOpPlan = partition_mesh(
        lambda count: decoder(num_layers, num_hosts, count),
        num_hosts,
        8,
        num_microbatches=256,
        memory_cap_bytes=cap,
        schedules=schedules,
        epsilon=EPSILON,
    )
    seconds = time.process_time() - start
    grid = f" (grid of {plan.granularity} layers)" if plan.granularity > 1 else ""
    text = f"{plan.gap:+.3%}{grid}, {seconds:.1f} s, {plan.num_stages} stages, {plan.schedule}"
    return Measured(text, seconds <= target and plan.gap <= most)
