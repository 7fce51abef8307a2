"""Inter-operator partition: layers to stages, stages to submeshes. Needs numpy, no torch."""

from blocks.pipeline.inter_op.does_not_fit import DoesNotFit
from blocks.pipeline.inter_op.inter_op_plan import InterOpPlan, PlannedStage
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.lazy_stages import LazyStages
from blocks.pipeline.inter_op.partition_mesh import partition_mesh
from blocks.pipeline.inter_op.stage_table import StageCost, StageSource, StageTable
from blocks.pipeline.inter_op.submesh import SubmeshShape, cover, submeshes

__all__ = [
    "DoesNotFit",
    "InterOpPlan",
    "LayerSums",
    "LazyStages",
    "PlannedStage",
    "StageCost",
    "StageSource",
    "StageTable",
    "SubmeshShape",
    "cover",
    "partition_mesh",
    "submeshes",
]
