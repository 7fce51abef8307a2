"""The engines of a config, as simulations and predictions take them."""

from blocks.sched.cluster_sim.generation import EngineSettings
from recipes.place.config import EngineLimits


def engine_settings(limits: EngineLimits) -> EngineSettings:
    """Of every engine; in a group the stages are one engine's at a time."""
    return EngineSettings(
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_lanes=limits.pp_batches,
        overlap=False,
    )
