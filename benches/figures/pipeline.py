"""Figures of ``blocks.pipeline``, one module a part."""

from collections.abc import Iterator

from benches.figures import (
    _pipeline_execution,
    _pipeline_joint,
    _pipeline_plan,
    _pipeline_schedules,
    _pipeline_sharding,
    _pipeline_speed,
    _pipeline_traces,
)
from benches.figures.row import Row


def rows() -> Iterator[Row]:
    yield from _pipeline_schedules.rows()
    yield from _pipeline_plan.rows()
    yield from _pipeline_joint.rows()
    yield from _pipeline_execution.rows()
    yield from _pipeline_traces.rows()
    yield from _pipeline_sharding.rows()
    yield from _pipeline_speed.rows()
