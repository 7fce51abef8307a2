"""``useful_options``: ways to run layers of which none is both slower and larger. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

SLOWER = 1.001
"""Seconds that count as no more."""

SMALLER = 0.98
"""Bytes that count as fewer."""


class OptionTotal(NamedTuple):
    """What all layers of a model take and hold under an option.

    seconds: of a microbatch, with its share of what is done once a step.
    fixed_bytes: held throughout, and in passing.
    microbatch_bytes: for every microbatch in flight.
    """

    seconds: float
    fixed_bytes: float
    microbatch_bytes: float

    def held(self, in_flight: int) -> float:
        return self.fixed_bytes + in_flight * self.microbatch_bytes


def useful_options(options: Sequence[OptionTotal], most_in_flight: int) -> tuple[int, ...]:
    """Those that are quickest for what they hold with 1, 2, 4, ... and most microbatches in flight.

    Of options nearly as quick the smallest stays, and of those nearly as small the quickest; the
    smallest of all stays always, for each of these numbers.

    >>> quick, slow = OptionTotal(1.0, 9.0, 1.0), OptionTotal(2.0, 1.0, 4.0)
    >>> useful_options([quick, slow, OptionTotal(2.0, 9.0, 4.0)], 2)
    (0, 1)
    """
    found: set[int] = set()
    powers = (1 << power for power in range(most_in_flight.bit_length()))
    for in_flight in {*powers, most_in_flight}:
        found.update(_front([(o.seconds, o.held(in_flight)) for o in options]))
    return tuple(sorted(found))


def _front(options: Sequence[tuple[float, float]]) -> list[int]:
    """From quick to small, thinned."""
    front: list[int] = []
    for at in sorted(range(len(options)), key=options.__getitem__):
        if not front or options[at][1] < options[front[-1]][1]:
            front.append(at)
    kept: list[int] = []
    since = 0.0  # seconds of the quickest of those nearly as quick
    for at in front:
        seconds, held = options[at]
        if kept and seconds <= since * SLOWER:
            kept[-1] = at
        elif not kept or at == front[-1] or held <= SMALLER * options[kept[-1]][1]:
            kept.append(at)
            since = seconds
    return kept
