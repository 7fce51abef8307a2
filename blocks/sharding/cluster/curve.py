"""``Curve``: measured seconds over a size, straight between the points. Needs no torch."""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check, check_positive, reading

Number = int | float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds of a call over how much it has to do.

    Straight between the points; flat below the first, where latency is all there is; in
    proportion beyond the last, where bandwidth is.

    at: sizes that were measured, in bytes or FLOPs, rising.
    seconds: of a call that nothing holds up, at each of them.
    spread: at each of them how much longer the median of the calls is, as a share; empty where
        unknown.

    >>> curve = Curve((1000, 3000), (2e-6, 4e-6))
    >>> [curve(size) for size in (10, 2000, 6000)]
    [2e-06, 3e-06, 8e-06]
    """

    at: tuple[Number, ...]
    seconds: tuple[Number, ...]
    spread: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        check(bool(self.at), "curve", "at least one point", "none")
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        check(rising and self.at[0] > 0, "sizes of a curve", "positive and rising", self.at)
        count = len(self.at)
        check(len(self.seconds) == count, "seconds", f"{count} of them", len(self.seconds))
        check(len(self.spread) in (0, count), "spread", f"{count} or none", len(self.spread))
        for value in self.seconds:
            check_positive("seconds of a curve", value)
            check(math.isfinite(value), "seconds of a curve", "a finite number", value)

    def __call__(self, size: Number) -> float:
        """Seconds at a size."""
        if size <= self.at[0]:
            return float(self.seconds[0])
        if size >= self.at[-1]:
            return self.seconds[-1] * size / self.at[-1]
        right = bisect.bisect_right(self.at, size)
        (x0, x1), (y0, y1) = self.at[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return {key: list(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Curve":
        """
        Raises:
            ValueError: data that is no curve.
        """
        with reading("curve", data, cls):
            return cls(numbers(data["at"]), numbers(data["seconds"]), numbers(data["spread"]))


def numbers(values: Sequence[Any]) -> tuple[Number, ...]:
    """The values, of which none may be anything but a number.

    Raises:
        TypeError: one that is none.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{value!r} is no number")
    return tuple(values)
