"""Bounds between layers, all of them or fewer. Needs no torch."""

from collections.abc import Sequence

from blocks.pipeline.inter_op.stage_table import StageSource, StageTable

FINER = 4
"""How many times finer every next grid near the cuts is."""


def bounds_of(source: StageSource) -> tuple[int, ...]:
    """Every bound stages may have."""
    if isinstance(source, StageTable):
        return source.bounds
    return tuple(range(source.num_layers + 1))


def thin(bounds: Sequence[int], cell: int) -> tuple[int, ...]:
    """Every ``cell``-th bound, and the last one.

    >>> thin(range(8), 3)
    (0, 3, 6, 7)
    """
    return (*bounds[:-1:cell], bounds[-1])


def near(cuts: Sequence[int], bounds: Sequence[int], step: int, max_cells: int) -> tuple[int, ...]:
    """Bounds ``step`` apart around the cuts, as far as ``FINER`` steps and ``max_cells`` allow.

    >>> near((0, 8, 16), range(17), 2, 5)
    (0, 4, 6, 8, 10, 12, 16)
    """
    at = {bound: n for n, bound in enumerate(bounds)}
    inner = [at[cut] for cut in cuts[1:-1]]
    reach = min(FINER, max(1, (max_cells // max(1, len(inner)) - 1) // 2))
    found = {0, len(bounds) - 1}
    for n in inner:
        found |= {n + d * step for d in range(-reach, reach + 1)}
    return tuple(bounds[n] for n in sorted(found) if 0 <= n < len(bounds))
