"""Prometheus metrics of a cluster's front door: by model, and by group."""

import functools
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from recipes.place.fleet import Fleet
from recipes.serve.metrics import FIRST_TOKEN_S, REQUEST_S, TOKEN_S
from recipes.serve.page import RecentRequests

PREFIX = "blocks_cluster_"
OUTCOMES = {429: "refused", 503: "unavailable"}
COUNTS = {
    "starts": ("group_starts", "Groups that were started."),
    "lost_groups": ("groups_lost", "Groups that were lost."),
    "loads": ("model_loads", "Models loaded into a group."),
    "failed_loads": ("model_loads_failed", "Loads that failed."),
    "unloads": ("model_unloads", "Models taken from a group."),
    "repairs": ("placement_repairs", "Placements mended after devices were lost."),
    "replans": ("placement_changes", "New placements found by a search."),
}
GROUP_GAUGES = {
    "num_running": ("requests_running", "Sequences in steps, by group and model."),
    "num_waiting": ("requests_waiting", "Requests in a queue, by group and model."),
}
ENGINE_COUNTERS = {
    "prompt_tokens": "Prompt tokens of admitted requests, by group and model.",
    "generation_tokens": "Tokens generated, by group and model.",
    "num_preemptions": "Sequences whose blocks were taken back, by group and model.",
}


class CountedRequests(RecentRequests):
    """``RecentRequests`` that tell Prometheus too."""

    def __init__(self, registry: CollectorRegistry, window_s: float = 300.0) -> None:
        super().__init__(window_s)
        self.outcomes = _counter(registry, "requests", "Requests that ended.", "outcome")
        self._limited = _counter(registry, "slo_requests", "Requests with a time limit.", "met")
        self._ttft = _histogram(
            registry, "time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S
        )
        self._tpot = _histogram(
            registry, "time_per_token_seconds", "Of a token after the first, mean.", TOKEN_S
        )
        self._latency = _histogram(
            registry, "request_latency_seconds", "Arrival to the end.", REQUEST_S
        )

    def answered(
        self,
        model: str,
        *,
        ttft_s: float,
        tpot_s: float | None,
        latency_s: float,
        met: bool | None = None,
    ) -> None:
        super().answered(model, ttft_s=ttft_s, tpot_s=tpot_s, latency_s=latency_s, met=met)
        self.outcomes.labels(model, "served").inc()
        self._ttft.labels(model).observe(ttft_s)
        self._latency.labels(model).observe(latency_s)
        if tpot_s is not None:
            self._tpot.labels(model).observe(tpot_s)
        if met is not None:
            self._limited.labels(model, str(met).lower()).inc()

    def failed(self, model: str, *, limited: bool = True) -> None:
        super().failed(model, limited=limited)
        self.outcomes.labels(model, "failed").inc()
        if limited:
            self._limited.labels(model, "false").inc()

    def refused(self, model: str, *, limited: bool = True) -> None:
        super().refused(model, limited=limited)
        if limited:
            self._limited.labels(model, "false").inc()


class FrontMetrics:
    """One front door's metrics, in a registry of their own.

    recent: what became of the last minutes' requests.
    """

    def __init__(self, fleet: Fleet, window_s: float = 300.0) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_FleetCollector(fleet))
        self.recent = CountedRequests(self.registry, window_s)
        self._again = _counter(
            self.registry, "requests_sent_again", "Requests whose group was lost unread."
        )
        self._cancelled = _counter(
            self.registry, "requests_cancelled", "Requests given up.", "cause"
        )

    def refused(self, model: str, status: int, *, limited: bool) -> None:
        """A request was turned away before any group had it."""
        self.recent.arrived(model)
        self.recent.refused(model, limited=limited)
        self.count_refusal(model, status)

    def count_refusal(self, model: str, status: int) -> None:
        """The same for Prometheus alone."""
        self.recent.outcomes.labels(model, OUTCOMES.get(status, "refused")).inc()

    def cancelled(self, model: str, cause: str) -> None:
        """A request was given up."""
        self._cancelled.labels(model, cause).inc()
        self.recent.outcomes.labels(model, "cancelled").inc()

    def sent_again(self, model: str) -> None:
        """A request goes to another group."""
        self._again.labels(model).inc()

    def of(self, model: str) -> "ModelMetrics":
        """What the routes of a model are given."""
        return ModelMetrics(functools.partial(self.count_refusal, model), self.render)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """``recipes.serve.metrics.ServiceMetrics`` of one model."""

    def __init__(self, count: Callable[[int], None], render: Callable[[], bytes]) -> None:
        self._count, self._render = count, render

    def refused(self, status: int) -> None:
        """A request was refused with a status."""
        self._count(status)

    def render(self) -> bytes:
        """Of all models together."""
        return self._render()


class _FleetCollector:
    """Reads what groups have told of themselves when somebody scrapes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        fleet = self._fleet
        for name, (shown, text) in COUNTS.items():
            yield CounterMetricFamily(PREFIX + shown, text, value=fleet.counts[name])
        lost = sorted(fleet.lost)
        yield GaugeMetricFamily(PREFIX + "devices_lost", "Devices of lost nodes.", value=len(lost))
        up = GaugeMetricFamily(PREFIX + "group_up", "1 where a group is there.", labels=["group"])
        ready = GaugeMetricFamily(
            PREFIX + "replica_ready", "1 where a model answers.", labels=["group", "model"]
        )
        for group in fleet.groups.values():
            up.add_metric([group.name], float(group.state == "ready"))
            for model, replica in group.replicas.items():
                ready.add_metric([group.name, model], float(replica.state == "ready"))
        yield from (up, ready)
        yield from self._engines()

    def _engines(self) -> Iterator[Metric]:
        labels = ["group", "model"]
        gauges = {
            name: GaugeMetricFamily(PREFIX + shown, text, labels=labels)
            for name, (shown, text) in GROUP_GAUGES.items()
        }
        usage = GaugeMetricFamily(
            PREFIX + "kv_cache_usage_perc", "Share of cache blocks in use.", labels=labels
        )
        counters = {
            name: CounterMetricFamily(PREFIX + name.removeprefix("num_"), text, labels=labels)
            for name, text in ENGINE_COUNTERS.items()
        }
        for group in self._fleet.groups.values():
            told = {} if group.handle is None else group.handle.state.models
            for model, state in told.items():
                for name, family in gauges.items():
                    family.add_metric([group.name, model], getattr(state, name))
                usage.add_metric([group.name, model], state.stats.kv_usage)
                for name, family in counters.items():
                    family.add_metric([group.name, model], getattr(state.stats, name))
        yield from (*gauges.values(), usage, *counters.values())


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, text, ["model", *labels], registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, edges: tuple[float, ...]
) -> Histogram:
    return Histogram(PREFIX + name, text, ["model"], buckets=edges, registry=registry)
