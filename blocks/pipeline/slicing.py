"""``slice_tokens``: where to cut a sequence so that a pipeline finishes soonest.

Needs numpy, no torch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from blocks._checks import check, check_positive, fail
from blocks.pipeline.capped_sum import (
    Partition,
    capped_sums,
    capped_sums_of_parts,
    least_largest,
)
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.least_makespan import least_makespan
from blocks.pipeline.slice_time import Number, SliceTime
from blocks.pipeline.uniform_slices import uniform_slices

Cost = CostSurface | SliceTime | Callable[[int, int], Any]
"""Seconds of a slice on one stage from its length and the tokens of prefix before it.

A function with the attribute ``takes_arrays`` is called once, with arrays for all slices.
"""

MAX_CELLS = 512


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
        fields = {field.name for field in dataclasses.fields(cls)}
        check(set(data) == fields, "slicing", f"the keys {sorted(fields)}", sorted(data))
        return cls(**{**data, "bounds": tuple(data["bounds"]), "costs_s": tuple(data["costs_s"])})


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
    for name, value in (("seq_len", seq_len), ("num_stages", num_stages)):
        check_positive(name, value)
    for name, value in (("num_sequences", num_sequences), ("granularity", granularity)):
        check_positive(name, value)
    check_positive("max_cells", max_cells)
    step = granularity
    while -(-seq_len // step) > max_cells:
        step *= 2
    num_cells = -(-seq_len // step)
    if num_slices is not None:
        ok = 1 <= num_slices <= num_cells
        check(ok, "num_slices", f"1 to {num_cells} slices of {step} tokens", num_slices)
    price = seconds_of(cost)

    def cut(points: Sequence[int], step: int) -> Slicing:
        return _cut(price, points, num_stages, num_sequences, num_slices, epsilon, step)

    best = cut([*range(0, seq_len, step), seq_len], step)
    if step == granularity:
        return best
    rival = _best_uniform(price, best, granularity, max_cells, num_slices)
    while step > granularity:
        bounds = min(best, rival, key=lambda slicing: slicing.total_s).bounds
        finer = step // 2
        while finer > granularity and (2 * step // finer + 1) * len(bounds) <= max_cells // 2:
            finer //= 2
        points = sorted({*_near(bounds, step, finer), *bounds})
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


def cost_table(price: Callable[[Any, Any], Any], points: Sequence[int]) -> Any:
    """Float64 ``[num_points, num_points]``: the slice from point i to point j, infinity for j <= i.

    Raises:
        ValueError: a cost that is negative or no number.
    """
    import numpy as np

    first, last = np.triu_indices(len(points), 1)
    at = np.asarray(points, np.int64)
    start = at[first]
    seconds = np.asarray(price(at[last] - start, start), np.float64)
    wrong = np.flatnonzero(~(seconds >= 0))
    if len(wrong):
        where = int(first[wrong[0]]), int(last[wrong[0]])
        what = f"cost of the slice from {points[where[0]]} to {points[where[1]]}"
        raise fail(what, "at least 0 seconds", seconds[wrong[0]])
    table = np.full((len(points), len(points)), np.inf)
    table[first, last] = seconds
    return table


def seconds_of(cost: Cost) -> Callable[[Any, Any], Any]:
    """Any cost as a function of arrays of lengths and prefixes."""
    if isinstance(cost, CostSurface | SliceTime):
        return cost.as_float()
    if getattr(cost, "takes_arrays", False):
        return cost

    def each(lengths: Any, starts: Any) -> list[float]:
        pairs = zip(lengths.tolist(), starts.tolist(), strict=True)
        return [float(cost(num_tokens, start)) for num_tokens, start in pairs]

    return each


def _near(bounds: Sequence[int], step: int, finer: int) -> list[int]:
    """Multiples of ``finer`` within ``step`` of an inner bound."""
    inner = range(finer, bounds[-1], finer)
    near = {
        (bound + shift) // finer * finer
        for bound in bounds[1:-1]
        for shift in range(-step, step + 1, finer)
    }
    return [point for point in near if point in inner]


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

    >>> equal_cost_slices(lambda num_tokens, start: num_tokens, 64, 4)
    (0, 16, 32, 48, 64)
    """
    check_positive("granularity", granularity)
    step = granularity
    while -(-seq_len // step) > max_cells:
        step *= 2
    num_cells = -(-seq_len // step)
    ok = 1 <= num_slices <= num_cells
    check(ok, "num_slices", f"1 to {num_cells} slices of {step} tokens", num_slices)
    price = seconds_of(cost)
    points: Sequence[int] = [*range(0, seq_len, step), seq_len]
    while True:
        table = cost_table(price, points)
        found = least_largest([table] * num_slices)
        if found is None:
            raise fail("cost", "some slicing that costs less than infinity", "none")
        # Of the slicings that share the cheapest costliest slice, the one with the least sum.
        least = capped_sums_of_parts([table] * num_slices, [found.largest])[0] or found
        bounds = tuple(points[i] for i in least.bounds)
        if step == granularity:
            return bounds
        points = sorted({*_near(bounds, step, step // 2), *bounds})
        step //= 2
