"""Token-level pipelining: slices, schedules as data, execution."""

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule

__all__ = ["Action", "Kind", "Schedule"]
