"""``equal_cost_slices``: slices that cost alike, for any cost. Needs numpy, no torch."""

from blocks._checks import fail
from blocks.pipeline.capped_sum import capped_sums_of_parts, least_largest
from blocks.pipeline.slice_grid import (
    MAX_CELLS,
    Cost,
    coarse_step,
    cost_table,
    every_point,
    points_near,
    seconds_of,
)


def equal_cost_slices(
    cost: Cost,
    seq_len: int,
    num_slices: int,
    *,
    granularity: int = 8,
    max_cells: int = MAX_CELLS,
) -> tuple[int, ...]:
    """Bounds of the slicing into ``num_slices`` whose costliest slice is cheapest, for any cost.

    Exact on grids of at most ``max_cells`` cells; finer ones are refined like ``slice_tokens``.

    Raises:
        ValueError: more slices than cells; no slicing without a forbidden slice.

    >>> equal_cost_slices(lambda num_tokens, start: num_tokens, 64, 4)
    (0, 16, 32, 48, 64)
    """
    step = coarse_step(seq_len, granularity, max_cells, num_slices)
    price = seconds_of(cost)
    points = every_point(seq_len, step)
    while True:
        table = cost_table(price, points)
        found = least_largest([table] * num_slices)
        if found is None:
            raise fail("cost", "some slicing that costs less than infinity", "none")
        # Of the slicings that share the cheapest costliest slice, the one with the least sum.
        least = capped_sums_of_parts([table] * num_slices, [found.largest])[0] or found
        bounds = tuple(points[i] for i in least.bounds)
        points = points_near(bounds, step, step // 2)
        if step == granularity or len(points) > 2 * max_cells:
            return bounds
        step //= 2
