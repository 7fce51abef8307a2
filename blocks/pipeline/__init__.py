"""Token-level pipelining: slices, schedules as data, execution."""

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.recorder import Recorder
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.trace import UNMEASURED, Origin, Trace, TraceEvent, merge
from blocks.pipeline.trace_file import read_traces, write_traces

__all__ = [
    "UNMEASURED",
    "Action",
    "Kind",
    "Origin",
    "Recorder",
    "Schedule",
    "Trace",
    "TraceEvent",
    "merge",
    "read_traces",
    "write_traces",
]
