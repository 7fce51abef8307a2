"""Prometheus metrics: vLLM's meanings and histogram edges under our own prefix.

Gauges and counters that the engine keeps anyway are read when somebody scrapes; only latencies are
observed as they happen.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX = "blocks_"

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKENS = tuple(float(2**power) for power in (0, *range(3, 15)))


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of one engine, cheap to take from any thread.

    num_running, num_waiting: sequences in steps, requests in the queue.
    kv_usage: share of the cache blocks that live sequences hold [0 to 1].
    kv_waste: share of the slots of the last step's sequences that held no token [0 to 1].
    num_preemptions, prefix_queries, prefix_hits, prompt_tokens, generation_tokens: running sums
        (prefix figures in tokens).
    num_failed_steps: steps that raised and were rolled back.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    kv_waste: float = 0.0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_failed_steps: int = 0


GAUGES = {
    "num_requests_running": ("Sequences in the running batch.", "num_running"),
    "num_requests_waiting": ("Requests waiting to be admitted.", "num_waiting"),
    "kv_cache_usage_perc": ("Share of cache blocks in use; 1 is full.", "kv_usage"),
    "kv_cache_waste_perc": ("Share of the slots in use without a token.", "kv_waste"),
}
COUNTERS = {
    "num_preemptions": ("Sequences whose blocks were taken back.", "num_preemptions"),
    "prefix_cache_queries": ("Prompt tokens looked up in the cache.", "prefix_queries"),
    "prefix_cache_hits": ("Prompt tokens found in the cache.", "prefix_hits"),
    "prompt_tokens": ("Prompt tokens of admitted requests.", "prompt_tokens"),
    "generation_tokens": ("Tokens generated.", "generation_tokens"),
    "failed_steps": ("Steps that raised and were rolled back.", "num_failed_steps"),
}


class ServiceMetrics(Protocol):
    """What the routes of a model need of its metrics; ``Metrics`` meets it."""

    def refused(self, status: int) -> None:
        """A request was refused with a status."""
        ...

    def render(self) -> bytes:
        """The Prometheus text format."""
        ...


class Metrics:
    """One engine's metrics in a registry of their own.

    stats: takes the snapshot that gauges and counters show.
    """

    def __init__(self, stats: Callable[[], EngineStats] = EngineStats) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StatsCollector(stats))
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "From one token of a sequence to the next.", TOKEN_S
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "Arrival to end of a sequence.", REQUEST_S
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "Arrival to first step.", REQUEST_S
        )
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in one step.", STEP_TOKENS
        )
        self._finished = self._counter(
            "request_success", "Sequences that ended, by reason.", "finished_reason"
        )
        self._refused = self._counter("requests_refused", "Requests refused, by status.", "status")
        self._cancelled = self._counter("requests_cancelled", "Requests given up.", "cause")

    def _histogram(self, name: str, text: str, edges: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, buckets=edges, registry=self.registry)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(PREFIX + name, text, [label], registry=self.registry)

    def step(self, num_tokens: int) -> None:
        self._step_tokens.observe(num_tokens)

    def first_token(self, seconds: float, queued: float) -> None:
        self._first_token.observe(seconds)
        self._queue.observe(queued)

    def next_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def finished(self, seconds: float | None, reason: str) -> None:
        """A sequence ended; ``seconds`` is None for one that failed and has no latency to tell."""
        if seconds is not None:
            self._request.observe(seconds)
        self._finished.labels(reason).inc()

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def cancelled(self, cause: str) -> None:
        self._cancelled.labels(cause).inc()

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class _StatsCollector:
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, (text, field) in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=getattr(stats, field))
        for name, (text, field) in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, text, value=getattr(stats, field))
