"""Planned steps on real tensors: one rank's part of a program, parameters, gradients, optimizer."""

from recipes.plan.execute.from_plan import job_of
from recipes.plan.execute.fx_operations import FxOperations
from recipes.plan.execute.job import PlannedJob
from recipes.plan.execute.launch import in_process_group, on_forks, on_threads
from recipes.plan.execute.local_call import LocalCall
from recipes.plan.execute.machine import Machine, Operations
from recipes.plan.execute.optimizer import SGD, AdamW, Optimizer
from recipes.plan.execute.planned_module import Microbatch, PlannedModule, state_of
from recipes.plan.execute.planned_pipeline import PlannedPipeline, meshes_of
from recipes.plan.execute.planned_stage import PlannedStage
from recipes.plan.execute.routes import Cargo, Routes, StageProgram, routes

__all__ = [
    "SGD",
    "AdamW",
    "Cargo",
    "FxOperations",
    "LocalCall",
    "Machine",
    "Microbatch",
    "Operations",
    "Optimizer",
    "PlannedJob",
    "PlannedModule",
    "PlannedPipeline",
    "PlannedStage",
    "Routes",
    "StageProgram",
    "in_process_group",
    "job_of",
    "meshes_of",
    "on_forks",
    "on_threads",
    "routes",
    "state_of",
]
