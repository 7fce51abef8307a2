"""``RecentRequests``: rates, attainment and latencies of the last minutes, by model."""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from blocks._checks import check, check_positive
from recipes.serve.page.state import History, ModelView, Percentiles

SAMPLES = 1000
"""Answers of a model that percentiles are taken over, at most."""


@dataclasses.dataclass(slots=True)
class _Bucket:
    """Counts of one stretch of time; ``number`` is its start in buckets of the clock."""

    number: int
    arrived: int = 0
    refused: int = 0
    limited: int = 0
    met: int = 0


class _Model:
    """Buckets and answers of one model."""

    def __init__(self, num_buckets: int) -> None:
        self.buckets: collections.deque[_Bucket] = collections.deque(maxlen=num_buckets)
        self.answers: collections.deque[tuple[float, float, float, float]] = collections.deque(
            maxlen=SAMPLES
        )

    def bucket(self, number: int) -> _Bucket:
        if not self.buckets or self.buckets[-1].number < number:
            self.buckets.append(_Bucket(number))
        return self.buckets[-1]


class RecentRequests:
    """What became of requests within the last ``window_s`` seconds. Any thread may write or read.

    Memory is bounded: counts by ``bucket_s`` seconds, and the last ``SAMPLES`` latencies a model.

    >>> recent = RecentRequests(clock=lambda: 100.0)
    >>> recent.arrived("a")
    >>> recent.answered("a", ttft_s=0.1, tpot_s=0.02, latency_s=0.3, met=True)
    >>> recent.models()["a"].attainment
    1.0
    """

    def __init__(
        self,
        window_s: float | int = 300.0,
        bucket_s: float | int = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_positive("bucket_s", bucket_s)
        check(window_s >= bucket_s, "window_s", f"at least bucket_s, {bucket_s}", window_s)
        self.window_s, self.bucket_s = float(window_s), float(bucket_s)
        self._num_buckets = math.ceil(window_s / bucket_s)
        self._clock = clock
        self._began_s = clock()
        self._models: dict[str, _Model] = {}
        self._lock = threading.Lock()

    def arrived(self, model: str) -> None:
        """A request came."""
        with self._lock:
            self._bucket(model).arrived += 1

    def answered(
        self,
        model: str,
        *,
        ttft_s: float,
        tpot_s: float | None,
        latency_s: float,
        met: bool | None = None,
    ) -> None:
        """A request was served; ``met`` is None where it had no time limit, ``tpot_s`` where it has
        no second token."""
        with self._lock:
            self._judge(self._bucket(model), met)
            tpot_s = math.nan if tpot_s is None else tpot_s
            self._models[model].answers.append((self._clock(), ttft_s, tpot_s, latency_s))

    def refused(self, model: str, *, limited: bool = True) -> None:
        """A request was turned away; ``limited`` tells whether it had a time limit."""
        with self._lock:
            bucket = self._bucket(model)
            bucket.refused += 1
            self._judge(bucket, False if limited else None)

    def failed(self, model: str, *, limited: bool = True) -> None:
        """A request ended with an error."""
        with self._lock:
            self._judge(self._bucket(model), False if limited else None)

    @staticmethod
    def _judge(bucket: _Bucket, met: bool | None) -> None:
        if met is not None:
            bucket.limited += 1
            bucket.met += met

    def _bucket(self, model: str) -> _Bucket:
        found = self._models.setdefault(model, _Model(self._num_buckets))
        return found.bucket(self._number())

    def _number(self) -> int:
        return math.floor(self._clock() / self.bucket_s)

    def models(
        self, names: Iterable[str] = (), in_flight: Mapping[str, int] = MappingProxyType({})
    ) -> dict[str, ModelView]:
        """Every model that was asked for or is among ``names``; these come first.

        Args:
            in_flight: requests that have come and are not over, by model.
        """
        with self._lock:
            known = dict.fromkeys([*names, *self._models])
            return {name: self._view(name, in_flight.get(name, 0)) for name in known}

    def _view(self, name: str, num_in_flight: int) -> ModelView:
        model = self._models.get(name) or _Model(self._num_buckets)
        buckets = self._live(model)
        span_s = max(min(self._clock() - self._began_s, self.window_s), self.bucket_s)
        limited = sum(bucket.limited for bucket in buckets)
        since_s = self._clock() - self.window_s
        answers = [answer for answer in model.answers if answer[0] >= since_s]
        ttft, tpot, latency = (
            percentiles([answer[at] for answer in answers if not math.isnan(answer[at])])
            for at in (1, 2, 3)
        )
        return ModelView(
            name,
            num_in_flight,
            requests_per_s=sum(bucket.arrived for bucket in buckets) / span_s,
            refused_per_s=sum(bucket.refused for bucket in buckets) / span_s,
            attainment=sum(bucket.met for bucket in buckets) / limited if limited else None,
            ttft_s=ttft,
            tpot_s=tpot,
            latency_s=latency,
            history=self._history([buckets]),
        )

    def history(self) -> History:
        """Of all models together."""
        with self._lock:
            return self._history([self._live(model) for model in self._models.values()])

    def _live(self, model: _Model) -> list[_Bucket]:
        least = self._number() - self._num_buckets
        return [bucket for bucket in model.buckets if bucket.number > least]

    def _history(self, parts: Sequence[Sequence[_Bucket]]) -> History:
        last = self._number()
        columns = {name: [0] * self._num_buckets for name in ("arrived", "limited", "met")}
        for bucket in (bucket for part in parts for bucket in part):
            for name, column in columns.items():
                column[bucket.number - last - 1] += getattr(bucket, name)
        return History(self.bucket_s, *(tuple(column) for column in columns.values()))


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """By the nearest rank; None of nothing.

    >>> percentiles([0.3, 0.1, 0.2])
    Percentiles(p50=0.2, p90=0.3, p99=0.3)
    """
    if not values:
        return None
    ranked = sorted(values)
    return Percentiles(*(ranked[math.ceil(share * len(ranked)) - 1] for share in (0.5, 0.9, 0.99)))
