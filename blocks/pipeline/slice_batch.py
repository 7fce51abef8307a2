"""``slice_batch``: where to cut a batch of sequences, by rows and by tokens at once.

Needs numpy, no torch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blocks._checks import check, check_positive, fail, reading
from blocks.pipeline.capped_sum import Partition, capped_sums
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.least_makespan import least_makespan
from blocks.pipeline.slice_grid import (
    MAX_CELLS,
    coarse_step,
    cost_table,
    every_point,
    seconds_of,
)
from blocks.pipeline.slice_time import Number, SliceTime
from blocks.pipeline.slicing import makespan_s

BatchCost = CostSurface | SliceTime | Callable[[int, int, int], Any]
"""Seconds of a slice on one stage from its length, its prefix and the number of rows.

``takes_arrays`` as in ``slicing.Cost``.
"""


class RowGroup(NamedTuple):
    """Sequences that go through the pipeline together, cut alike.

    num_rows: how many they are.
    bounds: where their slices begin and, last, where the sequences end; from 0.
    costs_s: seconds of every slice on one stage.
    """

    num_rows: int
    bounds: tuple[int, ...]
    costs_s: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class BatchSlicing:
    """A batch cut into groups of rows, and each group into token slices.

    groups: largest first; their order changes nothing about the makespan.
    num_stages: what it was cut for.
    step: bounds are multiples of it.
    lower_bound_s: what no cut of the batch on that step comes below.
    """

    groups: tuple[RowGroup, ...]
    num_stages: int
    step: int
    lower_bound_s: float

    @property
    def total_s(self) -> float:
        """Seconds until the last stage is done with every slice (see ``Slicing.total_s``)."""
        costs_s = [cost for group in self.groups for cost in group.costs_s]
        return makespan_s(costs_s, self.num_stages)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {**dataclasses.asdict(self), "groups": [group._asdict() for group in self.groups]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "BatchSlicing":
        """
        Raises:
            ValueError: data that is no cut of a batch.
        """
        with reading("batch slicing", data, cls):
            groups = tuple(
                RowGroup(group["num_rows"], tuple(group["bounds"]), tuple(group["costs_s"]))
                for group in data["groups"]
            )
            return cls(**{**data, "groups": groups})


class _Packed(NamedTuple):
    """The cheapest way through the batch under one cap."""

    total: float
    largest: float
    groups: tuple[tuple[int, Partition], ...]


def slice_batch(
    cost: BatchCost,
    seq_len: int,
    num_rows: int,
    num_stages: int,
    *,
    sizes: Sequence[int] | None = None,
    granularity: int = 8,
    epsilon: Number | None = None,
    max_cells: int = MAX_CELLS,
) -> BatchSlicing:
    """The cut of a batch into groups of rows and of groups into token slices that finishes soonest.

    Under each cap on the costliest slice every size of group has a best slicing; an unbounded
    knapsack puts groups together to the batch. Groups of one size are cut alike. Exact on the grid.

    Args:
        cost: seconds of a slice on one stage, all passes together, from its length, the tokens of
            prefix before it and the number of rows.
        seq_len: tokens of every sequence.
        num_rows: sequences of the batch.
        sizes: sizes a group may have; any by default.
        granularity: bounds are multiples of it, or of the smallest multiple by a power of two
            that leaves at most ``max_cells`` cells.
        epsilon: see ``slice_tokens``.

    Raises:
        ValueError: sizes that do not add up to the batch; a cost that is negative or no number.

    Reference: Li et al. 2021, TeraPipe, section 3.4.

    >>> from blocks.pipeline import SliceTime
    >>> found = slice_batch(SliceTime(fixed=40, per_token=1, per_square=1), 32, 4, 3)
    >>> [(group.num_rows, group.bounds) for group in found.groups]
    [(2, (0, 8, 16, 24, 32)), (2, (0, 8, 16, 24, 32))]
    """
    import numpy as np

    check_positive("num_rows", num_rows)
    check_positive("num_stages", num_stages)
    step = coarse_step(seq_len, granularity, max_cells, None)
    points = every_point(seq_len, step)
    allowed = sorted({*(range(1, num_rows + 1) if sizes is None else sizes)})
    allowed = [size for size in allowed if size <= num_rows]
    check(bool(allowed) and allowed[0] > 0, "sizes", "positive numbers of rows", sizes)
    tables = {size: cost_table(_of_rows(cost, size), points) for size in allowed}
    flat = np.unique(np.concatenate([table.ravel() for table in tables.values()]))
    values = flat[np.isfinite(flat)]

    def evaluate(caps: Any) -> list[_Packed | None]:
        by_size = {size: capped_sums(table, caps) for size, table in tables.items()}
        return [
            _knapsack({size: cuts[k] for size, cuts in by_size.items()}, num_rows)
            for k in range(len(caps))
        ]

    free = evaluate(values[-1:])[0] if len(values) else None
    if free is None:
        raise fail("sizes", f"groups that add up to {num_rows} rows and may be cut", sizes)
    weight = num_stages - 1
    slack = 1e-5 * free.total if epsilon is None else float(epsilon) * num_stages
    found = least_makespan(evaluate, values, weight, slack=slack)
    assert found is not None, "there is a cut without a cap"
    packed, lower_bound = found
    groups = tuple(
        RowGroup(
            size,
            tuple(points[i] for i in cut.bounds),
            tuple(float(tables[size][i, j]) for i, j in itertools.pairwise(cut.bounds)),
        )
        for size, cut in packed.groups
    )
    return BatchSlicing(groups, num_stages, step, lower_bound)


def _knapsack(cuts: dict[int, Partition | None], num_rows: int) -> _Packed | None:
    """Groups of the given sizes that add up to ``num_rows`` at the least total."""
    able = {size: cut for size, cut in cuts.items() if cut is not None}
    totals, last = [0.0], [0]
    for rows in range(1, num_rows + 1):
        options = [
            (totals[rows - size] + cut.total, -size) for size, cut in able.items() if size <= rows
        ]
        total, chosen = min(options, default=(float("inf"), 0))
        totals.append(total)
        last.append(-chosen)
    if totals[-1] == float("inf"):
        return None
    sizes, left = [], num_rows
    while left:
        sizes.append(last[left])
        left -= last[left]
    groups = tuple((size, able[size]) for size in sorted(sizes, reverse=True))
    return _Packed(totals[-1], max(cut.largest for _, cut in groups), groups)


def _of_rows(cost: BatchCost, num_rows: int) -> Callable[[Any, Any], Any]:
    """The cost of slices of that many rows, as a function of arrays of lengths and prefixes."""
    if isinstance(cost, CostSurface | SliceTime):
        rounded = cost.as_float()
        return lambda lengths, starts: rounded(lengths, starts, num_rows)
    if getattr(cost, "takes_arrays", False):
        return lambda lengths, starts: cost(lengths, starts, num_rows)
    return seconds_of(lambda num_tokens, start: cost(num_tokens, start, num_rows))
