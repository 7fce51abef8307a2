"""What collectives and messages between the ranks of this machine take."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from blocks.sharding import (
    DistributedGroup,
    Group,
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
)
from blocks.sharding.cluster import CollectiveTable, Curve, Link, Moving, fit_line
from recipes.plan.calibrate.timing import Sample
from recipes.plan.ranks import run_ranks

COLLECTIVES: tuple[Moving, ...] = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send",
)
SENT = {
    "cpu": tuple(1 << power for power in range(10, 25)),
    "cuda": tuple(1 << power for power in range(12, 29)),
}
"""Bytes that a rank sends, about: parts are whole elements."""
BETWEEN = 256
"""Rows and columns of the matrices that are multiplied between two calls: collectives stand between
computations, and cost more there than one behind another."""
PASSES = 10
"""How often the sizes are gone over."""


class Point(NamedTuple):
    """One collective at one size, as one rank saw it.

    sent_bytes: by a rank. elapsed: seconds that passed.
    cpu_s: that the rank worked, the median over the means of the passes.
    """

    sent_bytes: int
    elapsed: Sample
    cpu_s: float


def measure_tables(
    num_ranks: int,
    device_type: str,
    *,
    budget_s: float,
    on_progress: Callable[[str], None],
    sizes: Sequence[int] | None = None,
    collectives: Sequence[Moving] = COLLECTIVES,
) -> list[CollectiveTable]:
    """Tables of every collective among so many ranks, with both clocks on a CPU.

    The collectives are those that resharding runs, with what they copy on the way.

    Args:
        budget_s: for each size of each collective.
        sizes: bytes that a rank sends; default a few KiB to many MiB.
        collectives: which of them.
    """
    asked = SENT[device_type] if sizes is None else tuple(sizes)
    found: list[CollectiveTable] = []
    for collective in collectives:
        if collective == "send" and num_ranks != 2:
            continue
        points = run_ranks(num_ranks, _measure, (collective, asked, budget_s), device_type)
        found += _tables(collective, num_ranks, points, device_type)
        curve = found[-1].curve if device_type != "cpu" else found[-2].curve
        low, high = curve.seconds[0], curve.at[-1] / curve.seconds[-1]
        text = f"from {low * 1e6:.0f} us, up to {high / 1e9:.2f} GB/s"
        on_progress(f"{collective} of {num_ranks} ranks: {text}, spread {max(curve.spread):.0%}")
    return found


def link_of(name: str, tables: Sequence[CollectiveTable], source: str) -> Link:
    """The link that has these tables; its line is the one fitted to messages, or to all-gathers."""
    elapsed = [table for table in tables if table.clock == "elapsed"]
    order = ("send", "all_gather", "all_reduce", "reduce_scatter", "all_to_all")
    first = min(elapsed, key=lambda table: (order.index(table.collective), table.num_ranks))
    line = fit_line(first.curve)
    text = f"{source}: a line fitted to {first.collective} of {first.num_ranks} ranks"
    sources = {
        "latency_s": text,
        "bytes_per_s": text,
        "node_bytes_per_s": f"{source}: sharing is in the tables",
    }
    latency_s, rate = round(line.latency_s, 9), round(line.bytes_per_s)
    return Link(name, latency_s, rate, None, sources, tuple(tables))


def _tables(
    collective: Moving, num_ranks: int, points: list[list[Point]], device_type: str
) -> list[CollectiveTable]:
    """The slowest rank's elapsed seconds, the mean of the processor's."""
    sent, elapsed, spread, cpu = [], [], [], []
    for of_ranks in zip(*points, strict=True):
        slowest = max(of_ranks, key=lambda point: point.elapsed.seconds).elapsed
        sent.append(of_ranks[0].sent_bytes)
        elapsed.append(slowest.seconds)
        spread.append(round(slowest.spread, 4))
        cpu.append(statistics.fmean(point.cpu_s for point in of_ranks))
    curve = Curve(tuple(sent), tuple(elapsed), tuple(spread))
    found = [CollectiveTable(collective, num_ranks, "elapsed", curve)]
    if device_type == "cpu":
        worked = Curve(tuple(sent), tuple(cpu))
        found.append(CollectiveTable(collective, num_ranks, "cpu", worked))
    return found


def _measure(
    device: torch.device, collective: Moving, sizes: Sequence[int], budget_s: float
) -> list[Point]:
    """One rank's share: a point for every size.

    Goes over the sizes several times, so that a slow moment of the machine is no matter of size.
    """
    calls = [call_of(collective, size, device, DistributedGroup()) for size in sizes]
    matrix = torch.ones(BETWEEN, BETWEEN, device=device)
    rounds = [_rounds(call, matrix, budget_s / PASSES) for call, _ in calls]
    elapsed: list[list[float]] = [[] for _ in calls]
    worked: list[list[float]] = [[] for _ in calls]
    for _ in range(PASSES):
        for at, (call, _) in enumerate(calls):
            times = [_timed(call, matrix) for _ in range(rounds[at])]
            elapsed[at] += [passed for passed, _ in times]
            worked[at].append(statistics.fmean(cpu for _, cpu in times))
    messages = 2 if collective == "send" else 1  # there and back
    return [
        Point(
            sent,
            Sample.of([seconds / messages for seconds in elapsed[at]]),
            max(statistics.median(worked[at]) / messages, 1e-9),
        )
        for at, (_, sent) in enumerate(calls)
    ]


def _rounds(call: Callable[[], object], matrix: torch.Tensor, budget_s: float) -> int:
    """How often all ranks call in one pass."""
    seconds = [_timed(call, matrix)[0] for _ in range(4)][1:]
    wanted = max(2.0, min(50.0, budget_s / min(seconds)))
    rounds = torch.tensor(wanted, device=matrix.device)
    dist.broadcast(rounds, 0)
    return int(rounds)


def _timed(call: Callable[[], object], matrix: torch.Tensor) -> tuple[float, float]:
    """Seconds that pass in a call and that this rank works in it, other work having come before."""
    torch.mm(matrix, matrix)
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    worked, began = time.process_time(), time.perf_counter()
    call()
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - began, time.process_time() - worked


def call_of(
    collective: Moving, sent_bytes: int, device: torch.device, group: Group
) -> tuple[Callable[[], object], int]:
    """A call in which a rank sends about so many bytes, and how many it really sends."""
    n = group.size
    if collective == "send":
        return _message_of(sent_bytes, device), sent_bytes // 4 * 4
    parts = 2 * (n - 1) if collective == "all_reduce" else n - 1
    part = max(1, sent_bytes // (4 * parts))  # elements
    exact = 4 * part * parts
    if collective == "all_gather":
        x = torch.ones(part, device=device)
        return lambda: all_gather(x, group, 0), exact
    if collective == "all_to_all":
        x = torch.ones(n, part, device=device)
        return lambda: all_to_all(x, group, 1, 0, size=n * part), exact
    x = torch.ones(n * part, device=device)
    if collective == "all_reduce":
        return lambda: all_reduce(x, group), exact
    return lambda: reduce_scatter(x, group, 0), exact


def _message_of(sent_bytes: int, device: torch.device) -> Callable[[], object]:
    """A message from the first of two ranks to the second, and one back."""
    rank = dist.get_rank()
    x = torch.ones(sent_bytes // 4, device=device)

    def call() -> None:
        for sender in (0, 1):
            (dist.send if rank == sender else dist.recv)(x, 1 - rank)

    return call
