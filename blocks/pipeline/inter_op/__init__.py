"""Inter-operator partition: layers to stages, stages to submeshes. Needs numpy, no torch."""

from blocks.pipeline.inter_op.cluster_operators import (
    OperatorClusters,
    Value,
    cluster_operators,
)
from blocks.pipeline.inter_op.does_not_fit import DoesNotFit
from blocks.pipeline.inter_op.inter_op_plan import InterOpPlan, PlannedStage
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.lazy_stages import LazyStages
from blocks.pipeline.inter_op.partition_inference import (
    InferencePlan,
    InferenceStage,
    partition_inference,
)
from blocks.pipeline.inter_op.partition_mesh import partition_mesh
from blocks.pipeline.inter_op.shortage import Shortage
from blocks.pipeline.inter_op.stage_table import StageCost, StageSource, StageTable
from blocks.pipeline.inter_op.submesh import SubmeshShape, cover, submeshes

__all__ = [
    "DoesNotFit",
    "InferencePlan",
    "InferenceStage",
    "InterOpPlan",
    "LayerSums",
    "LazyStages",
    "OperatorClusters",
    "PlannedStage",
    "Shortage",
    "StageCost",
    "StageSource",
    "StageTable",
    "SubmeshShape",
    "Value",
    "cluster_operators",
    "cover",
    "partition_inference",
    "partition_mesh",
    "submeshes",
]
