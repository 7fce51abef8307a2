"""``Workload``: who asks which model for what, when, and how soon it must be answered."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blocks._checks import check, check_positive, fail

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Number = float | int
Numbers = Number | Sequence[Any] | npt.NDArray[Any]
PER_REQUEST = ("arrival_s", "model", "slo_s", "tpot_s", "prompt_len", "output_len")


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival, as read-only arrays of one length.

    models: names; requests hold indices into them.
    arrival_s: seconds from the start of the workload, never falling.
    model: index of the model asked for.
    slo_s: seconds from arrival within which it must be answered, or where the model generates, its
        first token must be; infinite where there is no such limit.
    tpot_s: most seconds an output token after the first, on average over the request.
    prompt_len, output_len: tokens; 0 where models do not generate.
    duration_s: seconds the workload lasts, at least the last arrival.

    >>> workload = Workload.of(["a", "b"], [0.0, 0.5, 2.0], [0, 1, 0], slo_s=1.0)
    >>> workload.num_requests, workload.duration_s, workload.rates().tolist()
    (3, 2.0, [1.0, 0.5])
    """

    models: tuple[str, ...]
    arrival_s: Floats
    model: Ints
    slo_s: Floats
    tpot_s: Floats
    prompt_len: Ints
    output_len: Ints
    duration_s: float

    def __post_init__(self) -> None:
        check(len(set(self.models)) == len(self.models), "models", "each once", self.models)
        count = len(self.arrival_s)
        for name in PER_REQUEST:
            array = getattr(self, name)
            check(array.shape == (count,), name, f"{count} numbers", array.shape)
            array.setflags(write=False)
        if count:
            arrival_s = self.arrival_s
            ok = bool(np.all(np.isfinite(arrival_s)) and np.all(np.diff(arrival_s) >= 0))
            check(
                ok and bool(arrival_s[0] >= 0),
                "arrival_s",
                "finite seconds from 0, rising",
                arrival_s,
            )
            known = self.model.min() >= 0 and self.model.max() < len(self.models)
            check(bool(known), "model", f"indices into {len(self.models)} models", self.model)
            for name in ("slo_s", "tpot_s", "prompt_len", "output_len"):
                least = getattr(self, name).min()
                check(bool(least >= 0), name, "0 or more", least)  # refuses NaN
        last = float(self.arrival_s[-1]) if count else 0.0
        enough = last <= self.duration_s < float("inf")
        check(enough, "duration_s", f"at least the last arrival, {last}", self.duration_s)

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        arrival_s: Numbers,
        model: Numbers = 0,
        *,
        slo_s: Numbers = np.inf,
        tpot_s: Numbers = np.inf,
        prompt_len: Numbers = 0,
        output_len: Numbers = 0,
        duration_s: Number | None = None,
    ) -> "Workload":
        """A workload of copies of what is given, put in order of arrival.

        Everything may be one number for all requests. Requests that arrive together keep the order
        they are given in.
        """
        arrivals = _numbers("arrival_s", arrival_s, np.float64).reshape(-1)
        order = np.argsort(arrivals, kind="stable")

        def each(name: str, values: Numbers, dtype: type) -> npt.NDArray[Any]:
            return np.broadcast_to(_numbers(name, values, dtype), arrivals.shape)[order].copy()

        last = float(arrivals.max()) if len(arrivals) else 0.0
        return cls(
            tuple(models),
            arrivals[order],
            each("model", model, np.int32),
            each("slo_s", slo_s, np.float64),
            each("tpot_s", tpot_s, np.float64),
            each("prompt_len", prompt_len, np.int32),
            each("output_len", output_len, np.int32),
            last if duration_s is None else float(duration_s),
        )

    @property
    def num_requests(self) -> int:
        """Requests in all."""
        return len(self.arrival_s)

    @property
    def deadline_s(self) -> Floats:
        """When each request must be answered, on the clock of the arrivals."""
        return self.arrival_s + self.slo_s

    def requests_by_model(self) -> npt.NDArray[np.int64]:
        """Requests for each model."""
        return np.bincount(self.model, minlength=len(self.models))

    def rates(self) -> Floats:
        """Requests a second for each model, over the whole duration."""
        check_positive("duration_s", self.duration_s)
        return self.requests_by_model() / self.duration_s

    def counts(self, window_s: Number) -> npt.NDArray[np.int64]:
        """Requests by model and window of ``window_s`` seconds."""
        check_positive("window_s", window_s)
        num_windows = max(1, int(np.ceil(self.duration_s / window_s)))
        window = np.minimum((self.arrival_s / window_s).astype(np.int64), num_windows - 1)
        flat = np.bincount(self.model * num_windows + window, minlength=num_windows)
        out = np.zeros(len(self.models) * num_windows, np.int64)
        out[: len(flat)] = flat[: len(out)]
        return out.reshape(len(self.models), num_windows)

    def cv(self, model: str | None = None) -> float:
        """Coefficient of variation of the gaps between arrivals, of one model or of all."""
        arrivals = self.arrival_s
        if model is not None:
            arrivals = arrivals[self.model == self.models.index(model)]
        gaps = np.diff(arrivals)
        check(len(gaps) > 1, "requests", "at least 3, to tell a CV", len(arrivals))
        return float(gaps.std() / gaps.mean())

    # --- the same requests, otherwise ------------------------------------------------------------

    def with_slo(
        self,
        slo_s: Mapping[str, Number] | Number,
        tpot_s: Mapping[str, Number] | Number = float("inf"),
    ) -> "Workload":
        """With time limits, one number for all or one for each model."""
        return dataclasses.replace(self, slo_s=self._each(slo_s), tpot_s=self._each(tpot_s))

    def _each(self, value: Mapping[str, Number] | Number) -> Floats:
        if not isinstance(value, Mapping):
            return np.full(self.num_requests, value, np.float64)
        missing = [name for name in self.models if name not in value]
        if missing:
            raise fail("limits", "one for each model", f"none for {missing[:3]}")
        table = np.array([value[name] for name in self.models], np.float64)
        return table[self.model] if len(table) else np.zeros(0)

    def with_lengths(self, prompt_len: Numbers, output_len: Numbers) -> "Workload":
        """With tokens, one number for all or one for each request."""
        shape = self.arrival_s.shape
        prompts = np.broadcast_to(_numbers("prompt_len", prompt_len, np.int32), shape).copy()
        outputs = np.broadcast_to(_numbers("output_len", output_len, np.int32), shape).copy()
        return dataclasses.replace(self, prompt_len=prompts, output_len=outputs)

    def lengths_of(self, other: "Workload", rng: np.random.Generator) -> "Workload":
        """With pairs of lengths drawn from another workload's, with replacement."""
        check(other.num_requests > 0, "other", "at least one request", "none")
        drawn = rng.integers(other.num_requests, size=self.num_requests)
        return self.with_lengths(other.prompt_len[drawn], other.output_len[drawn])

    def select(self, keep: npt.NDArray[np.bool_]) -> "Workload":
        """Those requests for which ``keep`` is true; duration and models stay."""
        parts = {name: getattr(self, name)[keep] for name in PER_REQUEST}
        return dataclasses.replace(self, **parts)

    def slice(self, start_s: Number, stop_s: Number) -> "Workload":
        """What arrives in ``[start_s, stop_s)``, on a clock that starts at ``start_s``.

        Cuts at any moments and ``follow`` give the whole back, but for rounding of the clock.
        """
        check(0 <= start_s <= stop_s, "slice", "0 <= start_s <= stop_s", (start_s, stop_s))
        inside = self.select((self.arrival_s >= start_s) & (self.arrival_s < stop_s))
        duration_s = float(max(0, min(stop_s, self.duration_s) - start_s))
        return dataclasses.replace(
            inside, arrival_s=inside.arrival_s - start_s, duration_s=duration_s
        )

    def delayed(self, seconds: Number) -> "Workload":
        """The same requests, ``seconds`` later."""
        check(seconds >= 0, "seconds", "0 or more", seconds)
        return dataclasses.replace(
            self, arrival_s=self.arrival_s + seconds, duration_s=self.duration_s + seconds
        )

    def follow(self, other: "Workload") -> "Workload":
        """This workload and then the other."""
        return merge([self, other.delayed(self.duration_s)])

    def faster(self, factor: Number) -> "Workload":
        """Every rate times ``factor``: the clock is compressed, so counts and CVs stay."""
        check_positive("factor", factor)
        return dataclasses.replace(
            self, arrival_s=self.arrival_s / factor, duration_s=self.duration_s / factor
        )


def merge(workloads: Sequence[Workload]) -> Workload:
    """All requests of several workloads on one clock; models of one name are one model.

    Of requests that arrive together, those of the earlier workload come first.

    >>> both = merge([Workload.of(["a"], [1.0]), Workload.of(["b", "a"], [0.0, 1.0], [1, 0])])
    >>> both.models, both.arrival_s.tolist(), both.model.tolist()
    (('a', 'b'), [0.0, 1.0, 1.0], [0, 0, 1])
    """
    check(bool(workloads), "workloads", "at least one", "none")
    models = tuple(dict.fromkeys(name for one in workloads for name in one.models))
    number = {name: index for index, name in enumerate(models)}
    tables = [np.array([number[name] for name in one.models], np.int32) for one in workloads]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in workloads])

    parts = {name: joined(name) for name in PER_REQUEST[2:]}
    model = [table[one.model] for table, one in zip(tables, workloads, strict=True)]
    duration_s = max(one.duration_s for one in workloads)
    arrival_s = joined("arrival_s")
    return Workload.of(models, arrival_s, np.concatenate(model), duration_s=duration_s, **parts)


def _numbers(name: str, values: Numbers, dtype: type) -> npt.NDArray[Any]:
    """An array of these, where nothing is lost: no fraction, no text, nothing out of range."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise fail(name, "a number, or one for each request", error) from error
    whole = np.issubdtype(dtype, np.integer)
    fits = array.dtype.kind in ("iu" if whole else "iuf") or not array.size
    if fits and whole and array.size:
        limits = np.iinfo(dtype)
        fits = limits.min <= array.min() and array.max() <= limits.max
    wanted = "whole numbers" if whole else "numbers"
    check(bool(fits), name, f"{wanted}, one or one for each request", f"{values!r:.80}")
    return array.astype(dtype)
