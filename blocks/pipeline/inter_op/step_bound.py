"""``step_bounds``: what no plan's step comes below, whatever its order. Needs numpy, no torch."""

from typing import Any

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.suffixes import Suffixes, prefixes, suffixes


def step_bounds(
    priced: Priced, budget: Budget, max_stages: int, *, below: int | float = float("inf")
) -> tuple[Suffixes, ...]:
    """Longest chains through the stages from one to the last, least over all partitions.

    Before stage ``j`` starts, the first microbatch has come through the stages before it; it then
    works for ``B`` microbatches; after its last gradient of inputs, that microbatch goes back
    through the stages before it. The longest such chain over all ``j`` is least in one pass: a
    chain of a suffix grows by what the stage before it adds. With split backwards the weight
    gradients may come after the way back, and two chains are told apart: all work of a stage and
    no way back, and the way back but no weight gradients.

    Args:
        below: chains at least this long are not followed up.

    Returns:
        for each chain its values by stages, shape, first layer and devices; none is above the
        simulated makespan of any plan that goes on so.
    """
    import numpy as np

    cells, count = priced.table.cells, priced.count
    there, back = priced.table.send_s, priced.table.return_s
    forward, once = cells["forward_s"], cells["once_s"]
    if priced.flow.splits:
        gradients = forward + cells["backward_s"]
        work = count * priced.whole_s + once
        chains = [(forward, work, there), (gradients, count * gradients, there + back)]
        last = cells["weight_s"] + once  # of the first stage, after all chains
    else:
        chains = [(priced.whole_s, count * priced.whole_s, there + back)]
        last = once
    found = []
    for number, (step, head, send) in enumerate(chains):
        if number == len(chains) - 1:
            step, head = step.copy(), head.copy()
            step[0] += last[0]
            head[0] += last[0]
        ahead = prefixes(priced.least(chains[number][0], 1), send, budget)
        known = np.where(np.isfinite(ahead), below - ahead if below < np.inf else np.inf, -np.inf)

        def costs(to_end: int, step: Any = step, head: Any = head) -> tuple[Any, Any]:
            return priced.least(step, to_end), priced.least(head, to_end)

        def limit(to_end: int, known: Any = known) -> Any:
            return known

        found.append(suffixes(costs, send, budget, max_stages, limit=limit))
    return tuple(found)


def bounds_by_depth(chains: tuple[Suffixes, ...]) -> dict[int, float]:
    """The bound of plans with so many stages; those that are absent are not below the limit."""
    import numpy as np

    depths = range(1, min(len(chain.value) for chain in chains))
    found = {}
    for depth in depths:
        bound = max(float(chain.ends(depth).min(initial=np.inf)) for chain in chains)
        if bound < np.inf:
            found[depth] = bound
    return found
