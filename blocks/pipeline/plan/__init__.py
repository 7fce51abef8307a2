"""The joint planner: cuts, order, recomputation and memory of one training step together."""

from blocks.pipeline.plan.pipeline_plan import PipelinePlan
from blocks.pipeline.plan.plan_pipeline import plan_pipeline

__all__ = ["PipelinePlan", "plan_pipeline"]
