"""Plans of parallel training: made for a model and a cluster, read, compared, executed."""

from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.prediction import Prediction, StagePrediction
from recipes.plan.stage_plan import Boundary, ParameterPlacement, Pattern, StagePlan

__all__ = [
    "Boundary",
    "Fingerprint",
    "ParallelPlan",
    "ParameterPlacement",
    "Pattern",
    "Prediction",
    "StagePlan",
    "StagePrediction",
]
