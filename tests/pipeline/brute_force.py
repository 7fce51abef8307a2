"""Every cut there is, and costs of every shape, to hold the programs against."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

CELL = 8


def every_bounds(num_cells: int, cell: int = CELL) -> Iterator[tuple[int, ...]]:
    """Bounds of every cut of ``num_cells`` cells into contiguous parts."""
    for count in range(num_cells):
        for inner in itertools.combinations(range(1, num_cells), count):
            yield tuple(cell * x for x in (0, *inner, num_cells))


def partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Every multiset of positive numbers up to ``largest`` that adds up to ``total``."""
    if total == 0:
        yield ()
    for size in range(min(total, largest), 0, -1):
        for rest in partitions(total - size, size):
            yield (size, *rest)


def costs(cost: Callable[..., Any], bounds: Sequence[int], *more: int) -> list[Any]:
    return [cost(b - a, a, *more) for a, b in itertools.pairwise(bounds)]


def makespan(
    cost: Callable[..., Any], bounds: Sequence[int], num_stages: int, num_sequences: int = 1
) -> Any:
    priced = costs(cost, bounds)
    return num_sequences * sum(priced) + (max(priced) * (num_stages - 1) if num_stages > 1 else 0)


class Problem(NamedTuple):
    """Costs of ``(length, prefix)`` or ``(length, prefix, rows)``; whole, so sums are exact."""

    num_cells: int
    num_rows: int
    cost: Callable[..., Any]


def random_problem(
    rng: random.Random, num_cells: int, num_rows: int = 0, rate: float = 0
) -> Problem:
    """Any cost per slice, falling with length where it likes; a share is forbidden by infinity.

    In half of the problems longer slices tend to cost more: there caps matter most.
    """
    highest = rng.choice([1, 3, 20, 10**6])
    trend = rng.choice([0, 1 + highest // 8])

    def price(length: int) -> float:
        if length > 1 and rng.random() < rate:
            return float("inf")
        return rng.randint(0, highest) + trend * length

    prices = {
        (CELL * (j - i), CELL * i, *([rows] if num_rows else [])): price(j - i)
        for i in range(num_cells)
        for j in range(i + 1, num_cells + 1)
        for rows in range(1, max(num_rows, 1) + 1)
    }
    return Problem(num_cells, num_rows, lambda *where: prices[where])


def best_slicing(problem: Problem, num_stages: int, num_sequences: int = 1) -> Any:
    """The least makespan over every cut."""
    return min(
        makespan(problem.cost, bounds, num_stages, num_sequences)
        for bounds in every_bounds(problem.num_cells)
    )


def best_batch_slicing(problem: Problem, num_stages: int) -> Any:
    """The least makespan over every multiset of row groups and every cut of each group apart."""
    priced = {
        rows: sorted(
            {
                (sum(parts), max(parts))
                for bounds in every_bounds(problem.num_cells)
                for parts in [costs(problem.cost, bounds, rows)]
            }
        )
        for rows in range(1, problem.num_rows + 1)
    }
    return min(
        sum(total for total, _ in cuts) + (num_stages - 1) * max(largest for _, largest in cuts)
        for sizes in partitions(problem.num_rows, problem.num_rows)
        for cuts in itertools.product(*(priced[size] for size in sizes))
    )
