"""What the program over stages needs to know of every schedule. Needs no torch."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from blocks._checks import fail


class Flow(NamedTuple):
    """A schedule, seen from one stage.

    splits: whether gradients of weights are put off on their own.
    follows_depth: whether what a stage holds depends on the number of all stages, and not only on
        how many there are from it to the end.
    in_flight: microbatches a stage holds, of (stages from it to the end, all stages, microbatches).
    ahead: forwards before its first backward, of (stages from it to the end, microbatches).
    lag: microbatches its weight gradients are at most behind, of the stages before it.
    alternates: whether one whole backward and one forward follow these in turn, so that the forward
        after backward ``m`` is ``m + ahead``.
    """

    splits: bool
    follows_depth: bool
    in_flight: Callable[[int, int, int], int]
    ahead: Callable[[int, int], int]
    lag: Callable[[int], int]
    alternates: bool = False


FLOWS: Mapping[str, Flow] = {
    "gpipe": Flow(
        splits=False,
        follows_depth=False,
        in_flight=lambda to_end, depth, count: count,
        ahead=lambda to_end, count: 1,  # any order of the passes of a stage: the last bound holds
        lag=lambda before: 0,
    ),
    "one_f_one_b": Flow(
        splits=False,
        follows_depth=False,
        in_flight=lambda to_end, depth, count: min(to_end, count),
        ahead=lambda to_end, count: min(to_end, count),
        lag=lambda before: 0,
        alternates=True,
    ),
    "eager_1f1b": Flow(
        splits=False,
        follows_depth=False,
        in_flight=lambda to_end, depth, count: min(2 * to_end - 1, count),
        ahead=lambda to_end, count: min(2 * to_end - 1, count),
        lag=lambda before: 0,
        alternates=True,
    ),
    "zb_h1": Flow(
        splits=True,
        follows_depth=True,
        in_flight=lambda to_end, depth, count: min(depth, count),
        ahead=lambda to_end, count: min(to_end, count),
        lag=lambda before: before,
    ),
    "zb_h2": Flow(
        splits=True,
        follows_depth=True,
        in_flight=lambda to_end, depth, count: min(2 * depth - 1, count),
        ahead=lambda to_end, count: min(2 * to_end - 1, count),
        lag=lambda before: 2 * before,
    ),
}
"""By the names of ``SCHEDULES``; ``1f1b`` is another name for ``one_f_one_b``."""


def flow_name(schedule: str) -> str:
    """
    Raises:
        ValueError: a schedule stages cannot be partitioned for.

    >>> flow_name("1f1b")
    'one_f_one_b'
    """
    name = "one_f_one_b" if schedule == "1f1b" else schedule
    if name not in FLOWS:
        raise fail("schedule", f"one of {sorted(FLOWS)}", repr(schedule))
    return name
