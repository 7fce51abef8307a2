"""Token-level pipelining: slices, schedules as data, execution."""

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import Deadlock
from blocks.pipeline.recorder import Recorder
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import simulate
from blocks.pipeline.timeline import Span, Timeline
from blocks.pipeline.trace import UNMEASURED, Origin, Trace, TraceEvent, merge
from blocks.pipeline.trace_file import read_traces, write_traces

__all__ = [
    "UNMEASURED",
    "Action",
    "Deadlock",
    "Kind",
    "Origin",
    "Recorder",
    "Schedule",
    "Span",
    "Timeline",
    "Trace",
    "TraceEvent",
    "merge",
    "read_traces",
    "simulate",
    "write_traces",
]
