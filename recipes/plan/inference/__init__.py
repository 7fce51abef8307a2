"""Serving plans: a model's layers cut for the fastest slowest stage, forward passes alone."""

from recipes.plan.inference.command import main
from recipes.plan.inference.config import InferenceConfig
from recipes.plan.inference.plan import InferencePlan
from recipes.plan.inference.search import plan_inference

__all__ = ["InferenceConfig", "InferencePlan", "main", "plan_inference"]
