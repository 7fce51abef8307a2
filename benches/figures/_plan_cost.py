"""Figures of what moving tensors takes: how well it is foretold, and what cross-mesh plans save."""

import functools
import math
import random
import statistics
import threading
from collections.abc import Iterator

import torch

from benches.figures.row import Measured, Row
from blocks.sharding import (
    CrossMeshPlan,
    Mesh,
    Placement,
    Replicate,
    Shard,
    ShardingSpec,
    bundled_cluster,
    cross_mesh_s,
    execute_cross_mesh,
    plan_cross_mesh,
    reference,
)
from blocks.sharding.cluster import Clock, Curve, Moving, fit_line, held_out_errors, never_falling
from blocks.sharding.cross_mesh import LocalWires, Mode
from recipes.plan.calibrate.links import measure_tables

COMMAND = "python -m benches.figures --area plan"
NUM_PAIRS = 200


def rows() -> Iterator[Row]:
    clocks: dict[Clock, str] = {"elapsed": "elapsed seconds", "cpu": "CPU seconds"}
    for clock, seconds in clocks.items():
        yield Row(
            f"collectives of 2 gloo ranks on this machine, {seconds} at sizes left out of the fit: "
            "mean error of measured curves (least of three), and of one line (alpha-beta)",
            "curves <= 20 %",
            COMMAND,
            lambda clock=clock: _held_out(clock),
        )
    yield Row(
        f"cross-mesh plans carried out by threads, {NUM_PAIRS} random pairs of meshes and "
        "shardings, three modes: tensor whole, bytes as predicted",
        "all",
        COMMAND,
        _cross_mesh,
    )
    yield Row(
        "Wide-ResNet activations [48, 1280, 28, 28] float32 between two p3.16xlarge, batch over 8 "
        "to batch over 4 with 2 replicas, and to 8 replicas (simulated): send/recv against local "
        "all-gather (Alpa: 2.0x, end to end, on 32 devices)",
        ">= 1.9x",
        COMMAND,
        _wide_resnet,
    )


@functools.cache
def _curves(clock: Clock) -> tuple[Curve, ...]:
    """Of every collective the least of three measurements, some time apart."""
    return tuple(
        Curve(same[0].at, tuple(min(s) for s in zip(*(c.seconds for c in same), strict=True)))
        for same in zip(*(_measured(number)[clock] for number in range(3)), strict=True)
    )


@functools.cache
def _measured(number: int) -> dict[str, list[Curve]]:
    sizes = [1 << power for power in range(10, 23)]
    names: tuple[Moving, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    tables = measure_tables(
        2, "cpu", budget_s=0.04, on_progress=lambda _: None, sizes=sizes, collectives=names
    )
    clocks = ("elapsed", "cpu")
    return {clock: [t.curve for t in tables if t.clock == clock] for clock in clocks}


def _held_out(clock: Clock) -> Measured:
    line, curve = (
        statistics.fmean(error for c in _curves(clock) for error in held_out_errors(c, model))
        for model in (fit_line, never_falling)
    )
    return Measured(f"curves {curve:.0%}, line {line:.0%}", curve <= 0.2)


def _random_spec(rng: random.Random, first: int) -> ShardingSpec:
    sizes = rng.choice([(1,), (2,), (3,), (4,), (2, 2), (2, 3), (3, 2), (2, 2, 2)])
    ranks = tuple(range(first, first + math.prod(sizes)))
    kinds: list[Placement] = [Replicate(), Shard(0), Shard(1)]
    placements = tuple(rng.choice(kinds) for _ in sizes)
    return ShardingSpec(Mesh(tuple("abc"[: len(sizes)]), sizes, ranks), placements)


def _cross_mesh() -> Measured:
    rng, right = random.Random(0), 0
    modes: tuple[Mode, ...] = ("send_recv", "all_gather", "broadcast")
    for number in range(NUM_PAIRS):
        shape = (rng.randrange(1, 12), rng.randrange(1, 12))
        source, target = _random_spec(rng, 0), _random_spec(rng, rng.choice((0, 3, 8)))
        plan = plan_cross_mesh(shape, source, target, mode=modes[number % 3])
        right += _carries_out(torch.arange(math.prod(shape)).view(shape).float(), plan)
    return Measured(f"{right} of {NUM_PAIRS}", right == NUM_PAIRS)


def _carries_out(whole: torch.Tensor, plan: CrossMeshPlan) -> bool:
    wires, found = LocalWires(), {}
    parts = dict(zip(plan.source.mesh.ranks, reference.shard(whole, plan.source), strict=True))

    def work(rank: int) -> None:
        wire, part = wires.of(rank), parts.get(rank)
        found[rank] = execute_cross_mesh(part, plan, rank, wire, dtype=whole.dtype)

    ranks = sorted({*plan.source.mesh.ranks, *plan.target.mesh.ranks})
    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    made = [found[rank] for rank in plan.target.mesh.ranks]
    alike = all(
        torch.equal(a, b) for a, b in zip(made, reference.shard(whole, plan.target), strict=True)
    )
    moved = {rank: count for rank, count in wires.num_bytes_sent.items() if count}
    return alike and moved == plan.bytes_sent(whole.itemsize)


def _wide_resnet() -> Measured:
    cluster = bundled_cluster("p3.16xlarge", num_nodes=2)
    source = ShardingSpec(Mesh.of(data=8), (Shard(0),))
    speedups = []
    for sizes, placements in (((4, 2), (Shard(0), Replicate())), ((1, 8), (Replicate(),) * 2)):
        target = ShardingSpec(Mesh(("data", "channels"), sizes, tuple(range(8, 16))), placements)
        modes: tuple[Mode, ...] = ("send_recv", "all_gather")
        plans = [plan_cross_mesh((48, 1280, 28, 28), source, target, mode=m) for m in modes]
        slow, fast = (cross_mesh_s(plan, 4, cluster) for plan in plans)
        speedups.append(slow / fast)
    return Measured(f"{speedups[0]:.2f}x, {speedups[1]:.2f}x", min(speedups) >= 1.9)
