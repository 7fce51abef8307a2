"""Figures of many models on one cluster, one module a part."""

from collections.abc import Iterator

from benches.figures import (
    _place_faults,
    _place_groups,
    _place_real,
    _place_search,
    _place_service,
    _place_sim,
    _place_stages,
    _place_workers,
)
from benches.figures.row import Row


def rows() -> Iterator[Row]:
    yield from _place_sim.rows()
    yield from _place_search.rows()
    yield from _place_workers.rows()
    yield from _place_stages.rows()
    yield from _place_groups.rows()
    yield from _place_service.rows()
    yield from _place_faults.rows()
    yield from _place_real.rows()
