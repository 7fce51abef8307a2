"""``solve_stage``: the strategies of one stage that take least time within its memory."""

import dataclasses
from collections.abc import Callable

from blocks.sharding import (
    Mesh,
    MeshCost,
    Strategy,
    TensorValue,
    count,
    lower,
    strategy_of,
)
from blocks.sharding.intra_op import minimise, pose
from blocks.sharding.intra_op.pose import Allowed
from blocks.sharding.strategy import REPLICATE
from recipes.plan.layers.reduced import Reduced
from recipes.plan.prediction import StagePrediction
from recipes.plan.search.candidates import state_bytes
from recipes.plan.search.hull import DEAR
from recipes.plan.search.kept_for_a_step import kept_for_a_step
from recipes.plan.search.layer_price import LayerPrice, layer_prices, total_price
from recipes.plan.search.no_plan import Held, too_little_memory

MAX_PRICES = 12
"""Prices of a byte that are tried on the way to the one at which a stage just fits."""


@dataclasses.dataclass(frozen=True, eq=False)
class StageSolution:
    """Strategies of a stage, and what they take.

    reduced: the stage with its long runs of equal layers cut short.
    mesh: as it was solved for; equal stages are solved once, on the devices of the first.
    recompute: whether the forward is repeated.
    strategies: of its nodes.
    prices: of its layers.
    predicted: of the whole stage, for the step.
    seconds: of a microbatch of the reduced stage, with its share of the update.
    """

    reduced: Reduced
    mesh: Mesh
    recompute: bool
    strategies: tuple[Strategy, ...]
    prices: tuple[LayerPrice, ...]
    predicted: StagePrediction
    seconds: float


def solve_stage(
    reduced: Reduced,
    cost: MeshCost,
    *,
    num_microbatches: int,
    in_flight: int,
    optimizer: str,
    memory_bytes: float,
    allowed: Allowed | None = None,
) -> StageSolution:
    """Least time for a microbatch and its share of the update, within the memory of a device.

    Where the fastest strategies hold too much, a price on each byte is raised until they fit;
    layers that stand for many count as many. A stage that repeats its forward is one whose graph
    does (``Reduced.repeated``).

    Args:
        in_flight: microbatches held at once.
        allowed: keeps strategies out of the choice.

    Raises:
        ValueError: nothing fits; says what the least would be.
    """
    held = state_bytes(optimizer)
    if cost.mesh.num_ranks == 1:
        return _alone(reduced, cost, (num_microbatches, in_flight), held, memory_bytes)
    posed = pose(
        *(reduced.graph, cost.mesh, cost),
        num_microbatches=num_microbatches,
        in_flight=in_flight,
        state_bytes=held,
        pins=reduced.pins_on(cost.mesh),
        allowed=allowed,
    )
    known: tuple[int, ...] | None = None

    def at(price: float) -> StageSolution:
        nonlocal known
        problem = posed.problem.priced(price)
        labels = minimise(problem, hints=posed.hints, start=known, sweeps=0).labels
        known = labels
        strategies = posed.strategies(labels)
        made = _solution(reduced, strategies, cost, (num_microbatches, in_flight), held)
        return dataclasses.replace(made, seconds=posed.problem.value(labels))

    fast = at(0.0)
    if fast.predicted.peak_bytes <= memory_bytes:
        return fast
    small = at(DEAR * fast.seconds / fast.predicted.peak_bytes)
    _check_fits(small, memory_bytes)
    spent = fast.predicted.peak_bytes - small.predicted.peak_bytes
    low, high = 0.0, max(small.seconds - fast.seconds, 1e-9) / max(spent, 1.0)
    best = small
    for _ in range(MAX_PRICES):
        found = at(high)
        if found.predicted.peak_bytes <= memory_bytes:
            best = min(best, found, key=lambda one: one.seconds)
            break
        low, high = high, 4 * high
    for _ in range(MAX_PRICES // 2):
        middle = (low + high) / 2
        found = at(middle)
        if found.predicted.peak_bytes <= memory_bytes:
            best, high = min(best, found, key=lambda one: one.seconds), middle
        else:
            low = middle
    return best


def _alone(
    reduced: Reduced,
    cost: MeshCost,
    step: tuple[int, int],
    held: Callable[[TensorValue], float],
    memory_bytes: float,
) -> StageSolution:
    """Of one device, where there is nothing to choose."""
    axes = (REPLICATE,) * len(cost.mesh.axes)
    strategies = tuple(strategy_of(node.rule, axes) for node in reduced.graph.nodes)
    made = _solution(reduced, strategies, cost, step, held)
    _check_fits(made, memory_bytes)
    took = made.predicted
    seconds = took.forward_s + took.backward_s + took.update_s / step[0]
    return dataclasses.replace(made, seconds=seconds)


def _check_fits(made: StageSolution, memory_bytes: float) -> None:
    took = made.predicted
    if took.peak_bytes <= memory_bytes:
        return
    fixed = took.parameter_bytes + took.gradient_bytes + took.optimizer_bytes
    held = Held(fixed, took.flight_bytes, took.in_flight, took.transient_bytes)
    where = f"for a stage on {' x '.join(map(str, made.mesh.sizes))} devices, solved on its own"
    ways = ("use more devices", "lower seq_len or batch_size")
    raise too_little_memory(memory_bytes, where, held, ways)


def _solution(
    reduced: Reduced,
    strategies: tuple[Strategy, ...],
    cost: MeshCost,
    step: tuple[int, int],
    held: Callable[[TensorValue], float],
) -> StageSolution:
    num_microbatches, in_flight = step
    prices = layer_prices(reduced.graph, reduced.layer_of, strategies, cost, held)
    total = total_price(prices, reduced.counts)
    program = lower(reduced.graph, strategies, cost.mesh)
    counts = count(program, cost.mesh.ranks[0])
    passes = max(counts.forward_bytes, counts.backward_bytes) - counts.saved_bytes
    transient = float(max(passes, counts.update_bytes - in_flight * total.flight_bytes, 0))
    compute, collective = _of_step(total, num_microbatches)
    kept = kept_for_a_step(reduced, strategies, cost.mesh)
    predicted = StagePrediction(
        total.seconds("forward"),
        total.seconds("backward"),
        total.seconds("update"),
        compute,
        collective,
        total.parameter_bytes + kept.copy_bytes,
        total.gradient_bytes + kept.sum_bytes,
        total.optimizer_bytes,
        total.flight_bytes - kept.flight_bytes,
        in_flight,
        transient,
    )
    return StageSolution(reduced, cost.mesh, reduced.repeated, strategies, prices, predicted, 0.0)


def _of_step(total: LayerPrice, num_microbatches: int) -> tuple[float, dict[str, float]]:
    """Seconds of operations, and of collectives by kind, of a whole step."""
    times = {"forward": num_microbatches, "backward": num_microbatches}
    compute = sum(s * times.get(phase, 1) for phase, s in total.compute_s.items())
    collective: dict[str, float] = {}
    for (phase, kind), seconds in total.collective_s.items():
        collective[kind] = collective.get(kind, 0.0) + seconds * times.get(phase, 1)
    return compute, dict(sorted(collective.items()))
