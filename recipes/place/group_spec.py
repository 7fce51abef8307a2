"""What a config says of all its groups alike."""

from recipes.place.config import PlaceConfig
from recipes.place.group.spec import GroupSpec


def group_spec(config: PlaceConfig, group: str) -> GroupSpec:
    """A group of one device; others are made of it with ``dataclasses.replace``."""
    limits = config.engine
    return GroupSpec(
        group=group,
        device=config.cluster.device,
        num_threads=limits.num_threads,
        token_budget=limits.token_budget,
        max_num_seqs=limits.max_num_seqs,
        block_size=limits.block_size,
        max_model_len=limits.max_model_len,
        pp_batches=limits.pp_batches,
    )
