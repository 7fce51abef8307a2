"""A cluster of models that generate: engines with continuous batching on shared groups.

The engine's own scheduler decides every step; only the model is replaced, by the times of its
profile. Needs no torch.
"""

from blocks.sched.cluster_sim.generation.block_counter import BlockCounter
from blocks.sched.cluster_sim.generation.outcome import GenerationOutcome
from blocks.sched.cluster_sim.generation.pace import Pace
from blocks.sched.cluster_sim.generation.predict import Prediction, predict
from blocks.sched.cluster_sim.generation.settings import (
    Admission,
    AllocatorFactory,
    EngineSettings,
)
from blocks.sched.cluster_sim.generation.shared_cores import SharedCores
from blocks.sched.cluster_sim.generation.simulate_generation import simulate_generation
from blocks.sched.cluster_sim.generation.standing import Standing, standing
from blocks.sched.cluster_sim.generation.step_time import Load, StepTime, load_of

__all__ = [
    "Admission",
    "AllocatorFactory",
    "BlockCounter",
    "EngineSettings",
    "GenerationOutcome",
    "Load",
    "Pace",
    "Prediction",
    "SharedCores",
    "Standing",
    "StepTime",
    "load_of",
    "predict",
    "simulate_generation",
    "standing",
]
