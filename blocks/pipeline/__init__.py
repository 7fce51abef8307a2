"""Token-level pipelining: slices, schedules as data, execution.

Planning needs no torch; the names that execute are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.check import check_schedule
from blocks.pipeline.compare import Comparison, compare
from blocks.pipeline.cost import CostSurface, Residual
from blocks.pipeline.dependencies import Deadlock
from blocks.pipeline.equal_cost_slices import equal_cost_slices
from blocks.pipeline.fit_cost import Sample, fit_cost
from blocks.pipeline.flop_cost import flop_cost, unit_cost
from blocks.pipeline.inter_op import (
    DoesNotFit,
    InferencePlan,
    InferenceStage,
    InterOpPlan,
    LayerSums,
    LazyStages,
    OperatorClusters,
    PlannedStage,
    StageCost,
    StageTable,
    SubmeshShape,
    Value,
    cluster_operators,
    partition_inference,
    partition_mesh,
    submeshes,
)
from blocks.pipeline.lifetimes import Held, Lifetime, lifetimes
from blocks.pipeline.lower import lower
from blocks.pipeline.memory import MemorySizes, live_bytes, peak_bytes
from blocks.pipeline.plan import PipelinePlan, plan_pipeline
from blocks.pipeline.recorder import Recorder
from blocks.pipeline.replay import Replay, replay
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules import SCHEDULES, defer_weights
from blocks.pipeline.simulate import simulate
from blocks.pipeline.slice_batch import BatchSlicing, slice_batch
from blocks.pipeline.slice_time import SliceTime
from blocks.pipeline.slicing import Slicing, slice_tokens
from blocks.pipeline.stage_partition import StagePartition, partition_layers
from blocks.pipeline.timeline import Span, Timeline
from blocks.pipeline.trace import UNMEASURED, Origin, Trace, TraceEvent, merge
from blocks.pipeline.trace_file import read_traces, write_traces
from blocks.pipeline.uniform_slices import equal_flop_slices, uniform_slices
from blocks.pipeline.what_if import WhatIf, what_if

if TYPE_CHECKING:
    from blocks.pipeline.digests import Digests
    from blocks.pipeline.distributed import DistributedTransport, channels_of
    from blocks.pipeline.executor import Executor, StepResult
    from blocks.pipeline.in_process import InProcessTransport, in_process_transports, run_ranks
    from blocks.pipeline.isolate import Isolated, isolate_rank, isolate_ranks
    from blocks.pipeline.stage import SliceContext, StageModule
    from blocks.pipeline.transport import Handle, PipelineStuck, TensorSpec, Transport

__all__ = [
    "SCHEDULES",
    "UNMEASURED",
    "Action",
    "BatchSlicing",
    "Comparison",
    "CostSurface",
    "Deadlock",
    "Digests",
    "DistributedTransport",
    "DoesNotFit",
    "Executor",
    "Handle",
    "Held",
    "InProcessTransport",
    "InferencePlan",
    "InferenceStage",
    "InterOpPlan",
    "Isolated",
    "Kind",
    "LayerSums",
    "LazyStages",
    "Lifetime",
    "MemorySizes",
    "OperatorClusters",
    "Origin",
    "PipelinePlan",
    "PipelineStuck",
    "PlannedStage",
    "Recorder",
    "Replay",
    "Residual",
    "Sample",
    "Schedule",
    "SliceContext",
    "SliceTime",
    "Slicing",
    "Span",
    "StageCost",
    "StageModule",
    "StagePartition",
    "StageTable",
    "StepResult",
    "SubmeshShape",
    "TensorSpec",
    "Timeline",
    "Trace",
    "TraceEvent",
    "Transport",
    "Value",
    "WhatIf",
    "channels_of",
    "check_schedule",
    "cluster_operators",
    "compare",
    "defer_weights",
    "equal_cost_slices",
    "equal_flop_slices",
    "fit_cost",
    "flop_cost",
    "in_process_transports",
    "isolate_rank",
    "isolate_ranks",
    "lifetimes",
    "live_bytes",
    "lower",
    "merge",
    "partition_inference",
    "partition_layers",
    "partition_mesh",
    "peak_bytes",
    "plan_pipeline",
    "read_traces",
    "replay",
    "run_ranks",
    "simulate",
    "slice_batch",
    "slice_tokens",
    "submeshes",
    "uniform_slices",
    "unit_cost",
    "what_if",
    "write_traces",
]

_EXECUTE = {
    "Digests": "digests",
    "DistributedTransport": "distributed",
    "Executor": "executor",
    "Handle": "transport",
    "InProcessTransport": "in_process",
    "Isolated": "isolate",
    "PipelineStuck": "transport",
    "SliceContext": "stage",
    "StageModule": "stage",
    "StepResult": "executor",
    "TensorSpec": "transport",
    "Transport": "transport",
    "channels_of": "distributed",
    "in_process_transports": "in_process",
    "isolate_ranks": "isolate",
    "isolate_rank": "isolate",
    "run_ranks": "in_process",
}


def __getattr__(name: str) -> Any:
    if name not in _EXECUTE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"blocks.pipeline.{_EXECUTE[name]}"), name)
