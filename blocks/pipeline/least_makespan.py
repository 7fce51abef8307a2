"""``least_makespan``: the best cap for a capped sum. Needs numpy, no torch."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Capped(Protocol):
    """A choice whose parts keep to a cap: the sum of their costs, and the costliest."""

    @property
    def total(self) -> float: ...

    @property
    def largest(self) -> float: ...


Choice = TypeVar("Choice", bound=Capped)


def least_makespan(
    evaluate: Callable[[Any], Sequence[Choice | None]],
    values: Any,
    weight: int | float,
    *,
    slack: int | float = 0,
    batch: int = 32,
) -> tuple[Choice, float] | None:
    """The choice with the least ``total + weight * largest``.

    With ``weight = P - 1`` that is the time P stages take for slices one after another (Li et al.
    2021, equation 6), to be minimised over every cap ``t`` on the costliest slice. Theirs tries the
    caps in ascending order, stops where ``P t`` reaches the best time found, and leaves out caps
    within epsilon of the last one tried. This tries them in batches, each batch ascending, with the
    same stop, and leaves out whole intervals of caps instead: totals fall as caps rise, so every
    cap in an interval has at least the total of the next one tried above it. What is left out is
    proven to be no better than the answer, by more than ``slack``.

    Args:
        evaluate: for caps in ascending order the choice with the least total under each, or None
            where none keeps to it.
        values: all costs a part can have, ascending, without repetition.
        weight: at least 0.
        slack: how much worse than the best the answer may be.
        batch: how many caps are evaluated at once.

    Returns:
        the choice, and what no choice comes below; None where there is no choice at all.
    """
    import numpy as np

    def price(choice: Choice) -> float:
        return choice.total + weight * choice.largest

    best = evaluate(values[-1:])[0] if len(values) else None
    if best is None:
        return None
    lower_bound = np.inf
    # Intervals (low, high, total): no cap in values[low:high] has a lower total than ``total``.
    intervals = [(0, _below(values, best.largest), best.total)]
    while True:
        kept, limit = [], price(best) - slack
        stop = _below(values, price(best) / (weight + 1))
        for low, high, total in intervals:
            cut = min(high, stop)
            if cut < high:  # a part that costs this much is in the total, too
                lower_bound = min(lower_bound, values[max(low, cut)] * (weight + 1))
            if weight > 0:
                able = _below(values, (limit - total) / weight)
            else:
                able = high if total < limit else 0
            if able < cut:
                lower_bound = min(lower_bound, total + weight * values[max(low, able)])
            if low < min(cut, able):
                kept.append((low, min(cut, able), total))
        if not kept:
            return best, float(min(lower_bound, price(best)))
        tried = _spread(kept, batch)
        choices = dict(zip(tried, evaluate(values[tried]), strict=True))
        best = min([best, *(choice for choice in choices.values() if choice)], key=price)
        intervals = [piece for interval in kept for piece in _split(values, interval, choices)]


def _below(values: Any, limit: float) -> int:
    """How many of the ascending ``values`` are below ``limit``."""
    return int(values.searchsorted(limit))


def _spread(intervals: list[tuple[int, int, float]], batch: int) -> list[int]:
    """Indices to try, ascending: evenly over every interval, and at least one of each."""
    share = max(1, batch // len(intervals))
    tried: set[int] = set()
    for low, high, _ in intervals:
        count = min(share, high - low)
        tried.update(low + (high - low) * (2 * k + 1) // (2 * count) for k in range(count))
    return sorted(tried)


def _split(
    values: Any, interval: tuple[int, int, float], choices: dict[int, Choice | None]
) -> list[tuple[int, int, float]]:
    """What is left of an interval once some of its caps are tried, ascending."""
    low, high, total = interval
    pieces = []
    for index in sorted((i for i in choices if low <= i < high), reverse=True):
        if index >= high:
            continue  # covered by the choice of a higher cap
        pieces.append((index + 1, high, total))
        choice = choices[index]
        if choice is None:  # nor do lower caps allow any
            return pieces[::-1]
        # Caps from its largest part up to here allow nothing with a lower total.
        high, total = _below(values, choice.largest), choice.total
    pieces.append((low, high, total))
    return pieces[::-1]
