"""``SliceTime``: seconds of one pass over a token slice, as a sum of terms. Needs no torch."""

import dataclasses
from fractions import Fraction
from typing import Any

from blocks._checks import check, reading

Number = int | float | Fraction


@dataclasses.dataclass(frozen=True)
class SliceTime:
    """Seconds that ``l`` tokens after a prefix of ``c`` tokens take on one stage.

        fixed + per_token l + per_floor max(l, floor) + per_prefix c + per_pair l c + per_square l²

    Every term is at least zero and none falls with ``l`` or ``c``, so no predicted time is negative
    and no longer slice is predicted to be faster. Coefficients may be ``Fraction``: results are
    then exact.

    fixed: launches, and whatever else one slice costs however short it is.
    per_token: the linear layers.
    per_floor, floor: the part of the linear layers that takes as long for fewer than ``floor``
        tokens as for ``floor``: short slices leave the chip idle or read the weights for little.
    per_prefix: reading the prefix's keys and values, adding to their gradients.
    per_pair: attention between slice and prefix.
    per_square: attention inside the slice.

    >>> SliceTime(fixed=1, per_token=2, per_pair=3)(10, 4)
    141
    >>> SliceTime(per_floor=2, floor=64)(16, 0), SliceTime(per_floor=2, floor=64)(100, 0)
    (128, 200)
    """

    fixed: Number = 0
    per_token: Number = 0
    per_floor: Number = 0
    floor: int = 0
    per_prefix: Number = 0
    per_pair: Number = 0
    per_square: Number = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(value >= 0, f"{field.name} of a slice's time", "at least 0", value)

    def __call__(self, num_tokens: Any, start: Any, num_rows: Any = 1) -> Any:
        """
        Args:
            num_tokens: length of the slice; a number or an array, like ``start``.
            start: tokens of prefix.
            num_rows: equally cut sequences that go through together.
        """
        tokens = num_tokens * num_rows
        floored = tokens + (self.floor - tokens) * (tokens < self.floor)
        attention = (
            self.per_prefix * start
            + self.per_pair * num_tokens * start
            + self.per_square * num_tokens * num_tokens
        )
        return (
            self.fixed + self.per_token * tokens + self.per_floor * floored + attention * num_rows
        )

    def __add__(self, other: "SliceTime") -> "SliceTime":
        """Both passes in turn; their floors must agree where both have one."""
        floors = {time.floor for time in (self, other) if time.per_floor}
        check(len(floors) <= 1, "sum of slice times", "one floor", sorted(floors))
        return self._map(lambda name: getattr(self, name) + getattr(other, name), max(floors | {0}))

    def scaled(self, factor: Number) -> "SliceTime":
        """``factor`` layers instead of one."""
        return self._map(lambda name: getattr(self, name) * factor, self.floor)

    def as_float(self) -> "SliceTime":
        """The same with ``Fraction`` coefficients rounded, for arrays."""
        return self._map(lambda name: float(getattr(self, name)), self.floor)

    def _map(self, value: Any, floor: int) -> "SliceTime":
        names = [field.name for field in dataclasses.fields(self) if field.name != "floor"]
        return SliceTime(**{name: value(name) for name in names}, floor=floor)

    def to_json(self) -> dict[str, Any]:
        """Plain data; fractions as text."""
        fields = dataclasses.asdict(self)
        return {name: str(x) if isinstance(x, Fraction) else x for name, x in fields.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SliceTime":
        """
        Raises:
            ValueError: data that is no slice time.
        """
        with reading("slice time", data, cls):
            read = {name: Fraction(x) if isinstance(x, str) else x for name, x in data.items()}
            return cls(**{**read, "floor": int(data["floor"])})
