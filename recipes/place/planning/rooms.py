"""Rooms of key-value caches as engines have them: whole blocks, and one that is never used."""

from collections.abc import Callable

from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.placement import Placement


def whole_blocks(num_tokens: int, block_size: int) -> int:
    """The smallest room that holds so many tokens.

    >>> whole_blocks(20, 16)
    32
    """
    return -(-num_tokens // block_size) * block_size


def taken_by(room: int, block_size: int) -> int:
    """Tokens that a room takes the memory of, the block that holds none included.

    >>> taken_by(32, 16)
    48
    """
    return (room // block_size + 1) * block_size


def capped(placement: Placement, settings: EngineSettings) -> Placement:
    """Rooms of whole blocks, one less than there is memory for, as every cache has a block that
    holds no tokens; and no larger than an engine can ever fill, which leaves memory for models on
    demand."""
    most, size = settings.max_num_seqs * settings.max_model_len, settings.block_size
    return _rooms(placement, lambda room: min(max(room // size - 1, 0) * size, most))


def taken(placement: Placement, settings: EngineSettings) -> Placement:
    """What the rooms of a placement take, the block of each that holds no tokens included."""
    return _rooms(placement, lambda room: taken_by(room, settings.block_size))


def _rooms(placement: Placement, change: Callable[[int], int]) -> Placement:
    groups = (
        group._replace(kv_tokens=tuple(map(change, group.kv_tokens))) for group in placement.groups
    )
    return Placement(tuple(groups))
