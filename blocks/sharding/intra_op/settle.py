"""``settle``: a good choice of labels for a graph too knotted to be eliminated. Needs numpy."""

from collections.abc import Sequence

from blocks.sharding.intra_op.contract import contract
from blocks.sharding.intra_op.eliminate import TableCache
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.neighbourhood import improve
from blocks.sharding.intra_op.problem import Problem

COARSE_ENTRIES = 2**20
FINE_ENTRIES = 2**22
MAX_ROUNDS = 4


def settle(
    problem: Problem, hints: Hints, start: Sequence[int] | None, cache: TableCache
) -> tuple[int, ...]:
    """First with followers tied to what they follow, then each for itself, until neither helps.

    Args:
        start: a choice to begin with.
    """
    chosen = None if start is None else tuple(start)
    least = float("inf")
    for _ in range(MAX_ROUNDS):
        small = contract(problem, hints, chosen)
        known = None if chosen is None else small.reduce(chosen)
        found = improve(small.problem, known, small.choices, cache, COARSE_ENTRIES)
        tied = small.expand(found)
        if chosen is not None and problem.value(tied) >= least * (1 - 1e-6):
            break
        chosen = improve(problem, tied, hints.choices, cache, FINE_ENTRIES)
        least = problem.value(chosen)
    assert chosen is not None
    return chosen
