"""Rooms of key-value caches as engines have them: whole blocks, and one that is never used."""

from collections.abc import Callable

from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.placement import Placement


def capped(placement: Placement, settings: EngineSettings) -> Placement:
    """Rooms of whole blocks, one less than there is memory for, as every cache has a block that
    holds no tokens; and no larger than an engine can ever fill, which leaves memory for models on
    demand."""
    most, size = settings.max_num_seqs * settings.max_model_len, settings.block_size
    return _rooms(placement, lambda room: min(max(room // size - 1, 0) * size, most))


def taken(placement: Placement, settings: EngineSettings) -> Placement:
    """What the rooms of a placement take, the block of each that holds no tokens included."""
    size = settings.block_size
    return _rooms(placement, lambda room: (room // size + 1) * size)


def _rooms(placement: Placement, change: Callable[[int], int]) -> Placement:
    groups = (
        group._replace(kv_tokens=tuple(map(change, group.kv_tokens))) for group in placement.groups
    )
    return Placement(tuple(groups))
