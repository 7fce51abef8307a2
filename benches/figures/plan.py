"""Figures of the planner, one module a part."""

from collections.abc import Iterator

from benches.figures import (
    _plan_cost,
    _plan_execute,
    _plan_handover,
    _plan_inter,
    _plan_intra,
    _plan_known,
    _plan_ranking,
    _plan_rules,
    _plan_search,
    _plan_trace,
)
from benches.figures.row import Row


def rows() -> Iterator[Row]:
    yield from _plan_cost.rows()
    yield from _plan_intra.rows()
    yield from _plan_inter.rows()
    yield from _plan_rules.rows()
    yield from _plan_execute.rows()
    yield from _plan_trace.rows()
    yield from _plan_ranking.rows()
    yield from _plan_known.rows()
    yield from _plan_search.rows()
    yield from _plan_handover.rows()
