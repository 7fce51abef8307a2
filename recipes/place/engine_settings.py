"""The engines of a config, as simulations and predictions take them."""

from blocks.sched.cluster_sim.generation import EngineSettings
from recipes.place.config import EngineLimits


def engine_settings(limits: EngineLimits) -> EngineSettings:
    """Of every engine; groups compute one step at a time."""
    return EngineSettings(
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        overlap=False,
    )
