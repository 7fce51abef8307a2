"""``step_bounds``: what no plan's step comes below, whatever its order. Needs numpy, no torch."""

from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan, trace
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.suffixes import Suffixes, prefixes, suffixes


class Chain(NamedTuple):
    """A longest path through a step, stage by stage.

    step: seconds a stage adds to every path that goes on after it, ``[k, i, m, o]``.
    head: seconds of the path that ends with it.
    send: added between neighbours.
    last: seconds after any path, at the first stage, ``[i, m, o]``.
    """

    step: Any
    head: Any
    send: Any
    last: Any


def chains_of(priced: Priced) -> list[Chain]:
    """The paths every order of the schedule has.

    Before stage ``j`` starts, the first microbatch has come through the stages before it; it then
    works for ``B`` microbatches; after its last gradient of inputs, that microbatch goes back
    through the stages before it, and the first does what is done once. With split backwards the
    weight gradients may come after the way back, and two paths are told apart: all work of a stage
    and no way back, and the way back but no weight gradients.
    """
    cells, count = priced.cells, priced.count
    there, both = priced.table.send_s, priced.hops_s
    forward, once, weight = cells["forward_s"], cells["once_s"], cells["weight_s"]
    out = Chain(forward, count * priced.whole_s + once, there, 0.0 * once[0])
    if priced.flow.splits:
        gradients = forward + cells["backward_s"]
        return [Chain(gradients, count * gradients, both, weight[0] + once[0]), out]
    return [Chain(priced.whole_s, count * priced.whole_s, both, once[0]), out]


class StepBounds(NamedTuple):
    """Chains and their values; none is above the makespan of any plan that goes on so.

    chains: the paths.
    tables: by path, see ``Suffixes``; without what comes after at the first stage.
    totals: bounds of all plans by number of stages; plans that are absent are not below the limit.
    plans: those with the least paths, one by number of stages.
    """

    chains: list[Chain]
    tables: list[Suffixes]
    totals: dict[int, float]
    plans: list[Plan]


def step_bounds(
    priced: Priced,
    budget: Budget,
    max_stages: int,
    *,
    below: int | float = float("inf"),
) -> StepBounds:
    """Longest chains through the stages, the least of them over all partitions.

    A chain of a suffix grows by what the stage before it adds, so the least longest chain is found
    in one pass over stages, layers and devices.

    Args:
        below: chains at least this long are not followed up.
    """
    import numpy as np

    chains, tables = chains_of(priced), []
    able = np.ones(len(budget.shapes), bool)
    for chain in chains:
        able &= (priced.fits(1) & (chain.head < below)).any(axis=(0, 1, 3))
    budget, _ = budget.only(able.tolist())
    totals: dict[int, float] = {}
    plans: list[Plan] = []
    for number, chain in enumerate(chains):
        step, head = chain.step.copy(), chain.head.copy()
        step[0], head[0] = step[0] + chain.last, head[0] + chain.last
        ahead = prefixes(priced.least(step, 2), chain.send, budget)
        useful = np.where(np.isfinite(ahead), below, -np.inf) - np.where(
            np.isfinite(ahead), ahead, 0.0
        )

        def row(to_end: int, k: int, m: int, step: Any = step, head: Any = head) -> tuple[Any, Any]:
            fits = priced.fits(to_end)[k, :, m]
            return np.where(fits, step[k, :, m], np.inf), np.where(fits, head[k, :, m], np.inf)

        def costs(to_end: int, step: Any = step, head: Any = head) -> tuple[Any, Any]:
            return priced.least(step, to_end), priced.least(head, to_end)

        def limit(to_end: int, useful: Any = useful) -> Any:
            return useful

        table = suffixes(costs, chain.send, budget, max_stages, limit=limit)
        tables.append(table)
        found = {
            depth: float(table.ends(depth).min(initial=np.inf))
            for depth in range(1, len(table.value))
        }
        found = {depth: bound for depth, bound in found.items() if bound < np.inf}
        if number == 0:
            plans = [trace(table, row, chain.send, depth) for depth in found]
            totals = found
        else:
            totals = {depth: max(totals[depth], found[depth]) for depth in totals if depth in found}
    return StepBounds(chains, tables, totals, plans)
