"""``slice_tokens``: where to cut a sequence so that a pipeline finishes soonest.

Needs numpy, no torch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from blocks._checks import check, check_count, fail, reading
from blocks.pipeline.capped_sum import Partition, capped_sums, capped_sums_of_parts
from blocks.pipeline.least_makespan import least_makespan
from blocks.pipeline.slice_grid import (
    MAX_CELLS,
    Cost,
    coarse_step,
    cost_table,
    every_point,
    points_near,
    seconds_of,
)
from blocks.pipeline.slice_time import Number
from blocks.pipeline.uniform_slices import uniform_slices


@dataclasses.dataclass(frozen=True)
class Slicing:
    """A sequence cut into token slices, and what they cost.

    bounds: where the slices begin and, last, where the sequence ends; from 0.
    costs_s: seconds of every slice on one stage, all passes together.
    num_stages, num_sequences: what it was cut for.
    step: no slicing with bounds on multiples of this many tokens takes less than ``lower_bound_s``.
    lower_bound_s: see ``step``.
    """

    bounds: tuple[int, ...]
    costs_s: tuple[float, ...]
    num_stages: int
    num_sequences: int = 1
    step: int = 1
    lower_bound_s: float = 0.0

    @property
    def lengths(self) -> tuple[int, ...]:
        pairs = zip(self.bounds, self.bounds[1:], strict=False)
        return tuple(stop - start for start, stop in pairs)

    @property
    def num_slices(self) -> int:
        return len(self.costs_s)

    @property
    def total_s(self) -> float:
        """Seconds until the last stage is done with every slice of every sequence.

        Slices follow one another and the pipeline fills and drains at the pace of the costliest
        (Li et al. 2021, equation 5): ``S sum t + (P - 1) max t``.
        """
        return makespan_s(self.costs_s, self.num_stages, self.num_sequences)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {**dataclasses.asdict(self), "bounds": list(self.bounds), "costs_s": [*self.costs_s]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Slicing":
        """
        Raises:
            ValueError: data that is no slicing.
        """
        with reading("slicing", data, cls):
            bounds, costs_s = tuple(data["bounds"]), tuple(data["costs_s"])
            return cls(**{**data, "bounds": bounds, "costs_s": costs_s})


def makespan_s(costs_s: Sequence[Number], num_stages: int, num_sequences: int = 1) -> Any:
    """``S sum t + (P - 1) max t`` (see ``Slicing.total_s``)."""
    fill = (num_stages - 1) * max(costs_s) if num_stages > 1 else 0  # 0 times infinity is none
    return num_sequences * sum(costs_s) + fill


def slice_tokens(
    cost: Cost,
    seq_len: int,
    num_stages: int,
    *,
    num_sequences: int = 1,
    num_slices: int | None = None,
    granularity: int = 8,
    epsilon: Number | None = None,
    max_cells: int = MAX_CELLS,
) -> Slicing:
    """The slicing with the least makespan (see ``Slicing.total_s``): TeraPipe's program.

    Exact on a grid of at most ``max_cells`` cells, for any costs. A longer sequence starts on the
    finest such grid whose step is ``granularity`` times a power of two, and is then cut again on
    ever finer steps near the best cuts found, as long as these are at most ``2 max_cells`` places.
    The answer is never worse than a uniform slicing on the grid of ``granularity`` into at most
    ``max_cells`` slices, but for epsilon.

    Args:
        cost: seconds of a slice on one stage, all passes together. ``CostSurface`` is one; any
            function of length and prefix does, monotone or not. Infinity forbids a slice.
        seq_len: tokens of the sequence.
        num_stages: depth P of the pipeline.
        num_sequences: sequences S cut alike that follow one another.
        num_slices: exactly so many slices; any number by default.
        granularity: bounds are multiples of it; the last slice takes what is left over.
        epsilon: the answer takes at most ``num_stages * epsilon`` seconds longer than the best on
            its grid, 0 for the best itself. By default 1e-5 of the answer, split over the stages.
        max_cells: of the coarsest grid.

    Raises:
        ValueError: a cost that is negative or no number; no slicing without a forbidden slice.

    Reference: Li, Zhuang, Guo, Zhuo, Zhang, Song, Stoica 2021, TeraPipe, section 3.3.

    >>> from blocks.pipeline import unit_cost
    >>> slice_tokens(unit_cost(0.5, 64), 64, 4, num_slices=4).lengths
    (24, 16, 16, 8)
    """
    check_count("num_stages", num_stages)
    check_count("num_sequences", num_sequences)
    if epsilon is not None:
        check(epsilon >= 0, "epsilon", "at least 0 seconds", epsilon)
    step = coarse_step(seq_len, granularity, max_cells, num_slices)
    price = seconds_of(cost)

    def cut(points: Sequence[int], step: int) -> Slicing:
        return _cut(price, points, num_stages, num_sequences, num_slices, epsilon, step)

    best = cut(every_point(seq_len, step), step)
    if step == granularity:
        return best
    rival = _best_uniform(price, best, granularity, max_cells, num_slices)
    while step > granularity:
        bounds = min(best, rival, key=lambda slicing: slicing.total_s).bounds
        finer = step // 2
        while finer > granularity and (2 * step // finer + 1) * len(bounds) <= max_cells // 2:
            finer //= 2
        points = points_near(bounds, step, finer)
        if len(points) > 2 * max_cells:  # slices of a few cells each: little is left to gain
            break
        found = cut(points, best.step)
        if found.total_s <= best.total_s:
            best = dataclasses.replace(found, lower_bound_s=best.lower_bound_s)
        step = finer
    return min(best, rival, key=lambda slicing: slicing.total_s)


def _cut(
    price: Callable[[Any, Any], Any],
    points: Sequence[int],
    num_stages: int,
    num_sequences: int,
    num_slices: int | None,
    epsilon: Number | None,
    step: int,
) -> Slicing:
    """The best slicing with bounds among ``points``."""
    import numpy as np

    table = cost_table(price, points)
    values = np.unique(table[np.isfinite(table)])

    def evaluate(caps: Any) -> list[Partition | None]:
        if num_slices is None:
            return capped_sums(table, caps)
        return capped_sums_of_parts([table] * num_slices, caps)

    free = evaluate(values[-1:])[0] if len(values) else None
    if free is None:
        raise fail("cost", "some slicing that costs less than infinity", "none")
    weight = (num_stages - 1) / num_sequences
    if epsilon is None:
        slack = 1e-5 * (free.total + weight * free.total / len(free.bounds))
    else:
        slack = float(epsilon) * num_stages / num_sequences
    found = least_makespan(
        evaluate, values, weight, slack=slack, batch=32 if num_slices is None else 4
    )
    assert found is not None, "there is a partition without a cap"
    partition, lower_bound = found
    chosen = partition.bounds
    return Slicing(
        bounds=tuple(points[i] for i in chosen),
        costs_s=tuple(float(table[i, j]) for i, j in itertools.pairwise(chosen)),
        num_stages=num_stages,
        num_sequences=num_sequences,
        step=step,
        lower_bound_s=lower_bound * num_sequences,
    )


def _best_uniform(
    price: Callable[[Any, Any], Any],
    like: Slicing,
    granularity: int,
    max_slices: int,
    num_slices: int | None,
) -> Slicing:
    """The best slicing into equal lengths, for the same pipeline as ``like``."""
    import numpy as np

    found = []
    for count in range(1, max_slices + 1) if num_slices is None else (num_slices,):
        bounds = uniform_slices(like.bounds[-1], count, granularity=granularity)
        at = np.array(bounds)
        costs_s = tuple(map(float, price(np.diff(at), at[:-1])))
        total_s = makespan_s(costs_s, like.num_stages, like.num_sequences)
        found.append((total_s, dataclasses.replace(like, bounds=bounds, costs_s=costs_s)))
    return min(found, key=lambda pair: pair[0])[1]
