"""``CostSurface``: what a token slice costs on one stage, for every kind of action.

Needs no torch.
"""

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

from blocks._checks import check, fail, reading
from blocks.pipeline.action import Kind
from blocks.pipeline.slice_time import Number, SliceTime


class Residual(NamedTuple):
    """How far a fitted surface is from the measurements it was fitted to.

    max_relative, rms_relative: of (predicted - measured) / measured, over all kinds.
    num_samples: measured slices.
    worst: the kind, length and prefix where ``max_relative`` is.
    """

    max_relative: float
    rms_relative: float
    num_samples: int
    worst: tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class CostSurface:
    """Seconds and bytes of a slice of ``l`` tokens after ``c`` tokens of prefix on one stage.

    forward, input_gradient, weight_gradient: seconds of ``F``, ``B`` and ``W``; a recomputation
        takes as long as the forward, a full backward as long as ``B`` and ``W`` together.
    bytes_per_token: what one stage sends to the next per token, and gets back as gradient.
    latency_s, seconds_per_byte: of such a transfer.
    residual: of the fit; None for a surface that was not fitted.

    >>> surface = CostSurface(SliceTime(per_token=1), SliceTime(per_token=2), SliceTime())
    >>> surface.seconds(Kind.FULL_BACKWARD, 8, 0)
    16
    """

    forward: SliceTime
    input_gradient: SliceTime
    weight_gradient: SliceTime
    bytes_per_token: Number = 0
    latency_s: Number = 0
    seconds_per_byte: Number = 0
    residual: Residual | None = None

    def __post_init__(self) -> None:
        for name in ("bytes_per_token", "latency_s", "seconds_per_byte"):
            check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))

    def seconds(self, kind: Kind, num_tokens: Any, start: Any, num_rows: Any = 1) -> Any:
        """Seconds of a compute action; numbers or arrays.

        Raises:
            ValueError: a send or receive; see ``transfer_seconds``.
        """
        if kind in (Kind.FORWARD, Kind.RECOMPUTE):
            return self.forward(num_tokens, start, num_rows)
        if kind is Kind.BACKWARD:
            return self.input_gradient(num_tokens, start, num_rows)
        if kind is Kind.WEIGHT:
            return self.weight_gradient(num_tokens, start, num_rows)
        if kind is Kind.FULL_BACKWARD:
            both = self.input_gradient(num_tokens, start, num_rows)
            return both + self.weight_gradient(num_tokens, start, num_rows)
        raise fail("kind", "a compute action", kind, "transfers take transfer_seconds")

    def bytes_sent(self, num_tokens: Any, num_rows: Any = 1) -> Any:
        """Bytes of one transfer between neighbouring stages, in either direction."""
        return self.bytes_per_token * num_tokens * num_rows

    def transfer_seconds(self, num_tokens: Any, num_rows: Any = 1) -> Any:
        """Seconds of one transfer between neighbouring stages."""
        return self.latency_s + self.seconds_per_byte * self.bytes_sent(num_tokens, num_rows)

    def __call__(self, num_tokens: Any, start: Any, num_rows: Any = 1) -> Any:
        """Seconds of everything one stage does for a slice, with both transfers to the next.

        The ``t(l, c)`` of the TeraPipe program.
        """
        compute = self.seconds(Kind.FORWARD, num_tokens, start, num_rows)
        compute = compute + self.seconds(Kind.FULL_BACKWARD, num_tokens, start, num_rows)
        return compute + 2 * self.transfer_seconds(num_tokens, num_rows)

    def scaled(self, factor: Number) -> "CostSurface":
        """The surface of ``factor`` such stages in one; transfers stay as they are."""
        passes = (self.forward, self.input_gradient, self.weight_gradient)
        forward, input_gradient, weight_gradient = (time.scaled(factor) for time in passes)
        return dataclasses.replace(
            self, forward=forward, input_gradient=input_gradient, weight_gradient=weight_gradient
        )

    def as_float(self) -> "CostSurface":
        """The same surface with ``Fraction`` coefficients rounded, for arrays."""
        numbers = ("bytes_per_token", "latency_s", "seconds_per_byte")
        passes = (self.forward, self.input_gradient, self.weight_gradient)
        forward, input_gradient, weight_gradient = (time.as_float() for time in passes)
        return dataclasses.replace(
            self,
            forward=forward,
            input_gradient=input_gradient,
            weight_gradient=weight_gradient,
            **{name: float(getattr(self, name)) for name in numbers},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, SliceTime):
                value = value.to_json()
            elif isinstance(value, Residual):
                value = [*value[:3], list(value.worst)]
            elif value is not None and not isinstance(value, int | float):
                value = str(value)
            out[field.name] = value
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "CostSurface":
        """
        Raises:
            ValueError: data that is no cost surface.
        """
        with reading("cost surface", data, cls):
            read = dict(data)
            for name, value in data.items():
                if isinstance(value, dict):
                    read[name] = SliceTime.from_json(value)
                elif isinstance(value, str):
                    read[name] = Fraction(value)
            if data["residual"] is not None:
                *numbers, (kind, num_tokens, start) = data["residual"]
                read["residual"] = Residual(*numbers, worst=(kind, num_tokens, start))
            return cls(**read)
