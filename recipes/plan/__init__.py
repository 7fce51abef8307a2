"""Plans of parallel training: made for a model and a cluster, read, compared, executed.

Reading, comparing and applying plans needs no planner; that is ``recipes.plan.search.search``.
"""

from recipes.plan.apply_plan import AppliedStage, stages_of
from recipes.plan.config import PlanConfig
from recipes.plan.diff import diff
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.prediction import Prediction, StagePrediction
from recipes.plan.stage_plan import Boundary, ParameterPlacement, Pattern, StagePlan

__all__ = [
    "AppliedStage",
    "Boundary",
    "Fingerprint",
    "ParallelPlan",
    "ParameterPlacement",
    "Pattern",
    "PlanConfig",
    "Prediction",
    "StagePlan",
    "StagePrediction",
    "diff",
    "stages_of",
]
