"""``fit_line`` and how far a collective model is from sizes it has not seen. Needs no torch."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.sharding.cluster.curve import Curve, Number


class Line(NamedTuple):
    """Seconds as latency and bytes over bandwidth.

    >>> Line(1e-6, 1e9)(1000)
    2e-06
    """

    latency_s: float
    bytes_per_s: float

    def __call__(self, size: Number) -> float:
        return self.latency_s + size / self.bytes_per_s


def fit_line(curve: Curve) -> Line:
    """The line with the least squared relative error that has no negative latency.

    >>> line = fit_line(Curve((1000, 2000, 4000), (2e-6, 3e-6, 5e-6)))
    >>> round(line.latency_s * 1e6, 6), round(line.bytes_per_s / 1e9, 6)
    (1.0, 1.0)

    Raises:
        ValueError: fewer than two points.
    """
    check(len(curve.at) > 1, "points of the curve", "two or more", len(curve.at))
    weights = [1 / seconds**2 for seconds in curve.seconds]  # relative errors count alike
    s0 = sum(weights)
    s1 = sum(w * x for w, x in zip(weights, curve.at, strict=True))
    s2 = sum(w * x * x for w, x in zip(weights, curve.at, strict=True))
    t0 = sum(w * y for w, y in zip(weights, curve.seconds, strict=True))
    t1 = sum(w * x * y for w, x, y in zip(weights, curve.at, curve.seconds, strict=True))
    per_byte = (s0 * t1 - s1 * t0) / (s0 * s2 - s1 * s1)
    latency = (t0 - per_byte * s1) / s0
    if per_byte <= 0:  # the time does not depend on the bytes at these sizes
        return Line(t0 / s0, curve.at[-1] / curve.seconds[-1])
    if latency < 0:
        return Line(0.0, s2 / t1)
    return Line(latency, 1 / per_byte)


def never_falling(curve: Curve) -> Curve:
    """The curve with every point lowered to the lowest one behind it.

    Noise only ever adds to a time, and more bytes take no less: where they seem to, the smaller
    number was held up.

    >>> never_falling(Curve((1, 2, 3), (1.0, 4.0, 3.0))).seconds
    (1.0, 3.0, 3.0)
    """
    lowest = tuple(itertools.accumulate(reversed(curve.seconds), min))
    return Curve(curve.at, lowest[::-1], curve.spread)


def held_out_errors(
    curve: Curve, model: Callable[[Curve], Callable[[Number], float]]
) -> tuple[float, ...]:
    """Relative errors at every second point of a model made from the others, the ends included.

    Args:
        model: from the points given to a function of the size: ``fit_line``,
            ``never_falling``, or ``lambda given: given`` for the curve itself.

    >>> held_out_errors(Curve((1, 2, 3), (1.0, 3.0, 3.0)), lambda given: given)
    (0.3333333333333333,)

    Raises:
        ValueError: fewer than three points.
    """
    check(len(curve.at) > 2, "points of the curve", "three or more", len(curve.at))
    inner = range(1, len(curve.at) - 1, 2)
    kept = [at for at in range(len(curve.at)) if at not in inner]
    given = Curve(_take(curve.at, kept), _take(curve.seconds, kept))
    predict = model(given)
    return tuple(abs(predict(curve.at[i]) - curve.seconds[i]) / curve.seconds[i] for i in inner)


def _take(values: Sequence[Number], places: Sequence[int]) -> tuple[Number, ...]:
    return tuple(values[place] for place in places)
