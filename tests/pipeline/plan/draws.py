"""Steps for tests: drawn tables of seconds and bytes, and how they look to the simulator."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from hypothesis import strategies as st

from blocks.pipeline import Action, Kind, Schedule, peak_bytes, simulate
from blocks.pipeline.memory import MemorySizes
from blocks.pipeline.plan.step_costs import StepCosts, Table
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.trials import Order


class Shape(NamedTuple):
    """A step's sizes; its numbers come from ``seed``."""

    num_ranks: int
    num_slices: int
    num_chunks: int
    splits: bool
    recomputes: bool
    sends: bool
    seed: int

    def costs(self) -> StepCosts:
        """Any seconds and bytes in whole numbers, so that sums are exact."""
        random = Random(self.seed)
        stages, slices = self.num_ranks * self.num_chunks, self.num_slices
        zero = (0.0,) * slices

        def table(least: int, most: int, there: bool = True) -> Table:
            def row() -> tuple[float, ...]:
                return tuple(float(random.randint(least, most)) for _ in range(slices))

            return tuple(row() if there else zero for _ in range(stages))

        sends = self.sends and self.num_ranks > 1
        return StepCosts(
            num_ranks=self.num_ranks,
            num_chunks=self.num_chunks,
            bounds=tuple(range(slices + 1)),
            splits_weights=self.splits,
            forward=table(1, 9),
            recompute=table(1, 9, self.recomputes),
            backward=table(1, 19),
            weight=table(1, 9, self.splits),
            send_forward=(*table(0, 3, sends)[:-1], zero),
            send_backward=(zero, *table(0, 3, sends)[1:]),
            kept=table(1, 5),
            remade=table(1, 5, self.recomputes),
            accumulated=table(0, 3),
            put_aside=table(0, 3, self.splits),
        )


def shapes(
    *, max_ranks: int = 4, max_slices: int = 4, max_chunks: int = 2, splits: bool | None = None
) -> st.SearchStrategy[Shape]:
    return st.builds(
        Shape,
        num_ranks=st.integers(1, max_ranks),
        num_slices=st.integers(1, max_slices),
        num_chunks=st.integers(1, max_chunks),
        splits=st.booleans() if splits is None else st.just(splits),
        recomputes=st.booleans(),
        sends=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )


def schedule_of(costs: StepCosts, num_sequences: int, order: Order) -> Schedule:
    actions = StepGraph(costs, num_sequences).actions()
    return Schedule(
        "drawn",
        tuple(stage % costs.num_ranks for stage in range(costs.num_stages)),
        (costs.num_slices,) * num_sequences,
        tuple(tuple(actions[n] for n in program) for program in order.programs),
    )


def seconds_of(costs: StepCosts) -> Callable[[Action], float]:
    tables = {
        Kind.FORWARD: costs.forward,
        Kind.RECOMPUTE: costs.recompute,
        Kind.BACKWARD: costs.backward,
        Kind.FULL_BACKWARD: costs.backward,
        Kind.WEIGHT: costs.weight,
    }
    return lambda action: tables[action.kind][action.stage][action.slice]


def makespan_of(costs: StepCosts, schedule: Schedule) -> float:
    """What the simulator says."""

    def transfer(action: Action) -> float:
        table = costs.send_forward if action.kind == Kind.RECEIVE_FORWARD else costs.send_backward
        return table[action.peer][action.slice]

    return float(simulate(schedule, seconds_of(costs), transfer=transfer).makespan)


def peaks_of(costs: StepCosts, schedule: Schedule) -> tuple[float, ...]:
    """What the memory model says of the same bytes."""
    sizes = MemorySizes(
        # Where a stage recomputes, what is kept is its input.
        activations=lambda s, n, i: (costs.remade if any(costs.recompute[s]) else costs.kept)[s][i],
        inputs=lambda s, n, i: costs.kept[s][i],
        accumulators=lambda s, n, i: costs.accumulated[s][i],
        weight_inputs=lambda s, n, i: costs.put_aside[s][i],
    )
    bounds = [costs.bounds] * schedule.num_sequences
    return tuple(map(float, peak_bytes(schedule, sizes, bounds)))
