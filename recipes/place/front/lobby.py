"""``Lobby``: the door of a cluster, behind which are many models."""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from recipes.place.fleet import Desk, Slo
from recipes.place.fleet.keeper import Keeper
from recipes.place.fleet.replanner import Replanner
from recipes.place.front.cluster_view import cluster_view
from recipes.place.front.launch import Launchpad, this_machine
from recipes.place.front.metrics import FrontMetrics
from recipes.place.front.model import FrontModel
from recipes.place.front.routed_engine import RoutedEngine
from recipes.place.front.slo_headers import slo_of
from recipes.serve import errors
from recipes.serve.config import ServerConfig
from recipes.serve.door import Door
from recipes.serve.page import ClusterState, RecentEvents
from recipes.serve.service import Service


class Lobby(Door):
    """Routes requests by their model's name.

    Args:
        models: all that may be asked for, in the order they are shown.
        node_of: the name of the machine that a device lies on, for people.
        pad: where groups are started, open for as long as the server runs.
        replanner: runs beside the keeper.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: Sequence[FrontModel],
        desk: Desk,
        keeper: Keeper,
        metrics: FrontMetrics,
        events: RecentEvents,
        *,
        load_wait_s: float = 60.0,
        node_of: Callable[[int], str] = this_machine,
        pad: Launchpad,
        replanner: Replanner,
    ) -> None:
        self.config, self.draining = config, False
        self.desk, self.keeper, self.metrics, self.events = desk, keeper, metrics, events
        self.models = {model.name: model for model in models}
        self.replanner = replanner
        self._load_wait_s, self._pad, self._node_of = load_wait_s, pad, node_of
        self._services = {model.name: self._service(model) for model in models}
        self._began_s = keeper.clock()

    def of(self, name: str | None, headers: Mapping[str, str]) -> Service:
        known = list(self.models)
        if name is None and len(known) == 1:
            name = known[0]
        if name is None:
            raise errors.bad_request(f"model: expected one of {known}, got none", "model")
        if name not in self.models:
            raise errors.model_not_found(name, ", ".join(known))
        model = self.models[name]
        slo = slo_of(headers, model.slo)
        return dataclasses.replace(
            self._services[name],
            engine=self._engine(model, slo),
            max_model_len=self._max_model_len(model),
            draining=self.draining,
            ttft_s=_finite(slo.ttft_s),
            tpot_s=_finite(slo.tpot_s),
        )

    def services(self) -> list[Service]:
        return [self.of(name, {}) for name in self.models]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._pad.open():
            works = {"keeper": self.keeper.run(), "replanner": self.replanner.run()}
            tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_alive(self) -> bool:
        return self.keeper.is_alive

    def check_ready(self) -> int:
        if self.draining:
            raise errors.unavailable("the server is shutting down")
        if not any(group.state == "ready" for group in self.desk.fleet.groups.values()):
            raise errors.unavailable("no group is there yet")
        return self.desk.router.num_live

    def render_metrics(self) -> bytes:
        return self.metrics.render()

    def cluster(self) -> ClusterState | None:
        slos = {name: model.slo for name, model in self.models.items()}
        uptime_s = self.keeper.clock() - self._began_s
        return cluster_view(
            self.desk, slos, self.metrics.recent, self.events, uptime_s, self._node_of
        )

    def _service(self, model: FrontModel) -> Service:
        return Service(
            engine=self._engine(model, model.slo),
            tokenizer=model.tokenizer,
            config=self.config,
            model_name=model.name,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            metrics=self.metrics.of(model.name),
            recent=self.metrics.recent,
        )

    def _engine(self, model: FrontModel, slo: Slo) -> RoutedEngine:
        return RoutedEngine(
            model.name, self.desk, self.keeper, self.metrics, slo, self._load_wait_s
        )

    def _max_model_len(self, model: FrontModel) -> int:
        """What its roomiest replica takes; of a model that is not loaded, what it would at most."""
        seats = self.desk.router.hosts(model.name)
        return min(model.max_model_len, max((s.max_model_len for s in seats), default=1 << 30))


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
