"""A cluster in memory: handles that answer by counting, and the front door before them."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.placement import Placement
from recipes.place.fleet import Backoff, Capacity, Desk, Fleet, LiveGroup, Router, Slo
from recipes.place.fleet.drift import Traffic
from recipes.place.fleet.keeper import Keeper
from recipes.place.fleet.replanner import Replanner
from recipes.place.front import Lobby, routes
from recipes.place.front.launch import this_machine
from recipes.place.front.metrics import FrontMetrics
from recipes.place.front.model import FrontModel
from recipes.place.front.service import telling
from recipes.place.group import (
    GroupLost,
    GroupState,
    Loaded,
    LoadFailed,
    LostReason,
    NotHosted,
    Replica,
)
from recipes.serve.app import build_app
from recipes.serve.config import ServerConfig
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.page import RecentEvents
from recipes.serve.stream import Stream, StreamCancelled
from tests.place.fleet.clusters import BLOCK_SIZE, MEMORY, NAMES, PROFILES
from tests.serve.models import tiny_tokenizer

SETTINGS = EngineSettings(
    token_budget=64, max_num_seqs=8, max_model_len=256, block_size=BLOCK_SIZE, overlap=False
)
LIMIT_S = 30.0


class FakeHandle:
    """Answers each request with its model's name, letter by letter; meets ``GroupHandle``.

    pace: set while tokens are made. stop_after: tokens of a request after which it rests.
    seen: requests that had a token. replicas: all that were ever loaded.
    limits: TTFT and TPOT of every submission [s].
    """

    def __init__(self, group: LiveGroup, world: "World") -> None:
        self.group, self.world = group, world
        self.state, self.state_s = GroupState(), time.monotonic()
        self.models: dict[str, Loaded] = {}
        self.replicas: list[Replica] = []
        self.lost: LostReason | None = None
        self.pace = asyncio.Event()
        self.pace.set()
        self.stop_after = 1000
        self.streams: dict[int, tuple[Stream, Any]] = {}
        self.seen: list[str] = []
        self.limits: list[tuple[float, float]] = []
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        await asyncio.sleep(0)
        if self.world.bad_starts:
            self.world.bad_starts -= 1
            raise GroupLost(self.group.name, LostReason("not_started", "a bad start"))

    async def wait_lost(self) -> LostReason:
        await self._ended.wait()
        assert self.lost is not None
        return self.lost

    async def close(self, patience_s: float = 5.0) -> None:
        self.kill("closed")

    def kill(self, kind: Any = "ended") -> None:
        """What happens when its process dies."""
        if self.lost is not None:
            return
        self.lost = LostReason(kind, f"it {kind}")
        self.models.clear()
        self._ended.set()
        lost = GroupLost(self.group.name, self.lost)
        for stream, on_lost in list(self.streams.values()):
            if stream.was_read:
                for job in stream.jobs:
                    delta = Delta(job.request_id, 0, [], "", None, "error", lost=True)
                    delta.error = str(lost)
                    stream.put(delta)
                continue
            if any(job.request_id in self.seen for job in stream.jobs):
                stream.restart()
            on_lost(stream, lost)
        self.streams.clear()

    async def load(self, replica: Replica) -> Loaded:
        await self.world.loading.wait()
        self._check()
        if replica.model in self.world.bad_models:
            raise LoadFailed(f"{replica.model} is broken")
        self.replicas.append(replica)
        made = Loaded(200, 320, 7, (7,), replica.kv_tokens, 0.0)
        self.models[replica.model] = made
        self.world.note()
        return made

    async def unload(self, model: str, *, drain_s: float | None = None) -> None:
        if model not in self.models:
            raise NotHosted(model)
        del self.models[model]
        while any(ask[0].jobs[0].request_id for ask in self._of(model)):
            await asyncio.sleep(0.005)
        self.world.note()

    def _of(self, model: str) -> list[Any]:
        return [held for held in self.streams.values() if held[0].model == model]  # type: ignore

    def unseen(self, model: str) -> tuple[int, ...]:
        return ()

    def _check(self) -> None:
        if self.lost is not None:
            raise GroupLost(self.group.name, self.lost)

    async def submit(
        self, model: str, jobs: Sequence[Job], *, ttft_s: float, tpot_s: float, stream, on_lost
    ) -> Stream:
        await asyncio.sleep(0)
        self._check()
        if model not in self.models:
            raise NotHosted(model)
        self.limits.append((ttft_s, tpot_s))
        if stream is None:
            stream = Stream(jobs, self._cancel)
        elif stream.cancelled is not None:
            raise StreamCancelled(stream.cancelled)
        else:
            stream.hand_over(self._cancel)
        stream.model = model  # type: ignore[attr-defined]
        self.streams[id(stream)] = (stream, on_lost)
        task = asyncio.create_task(self._answer(model, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def _cancel(self, stream: Stream, cause: str) -> None:
        self.streams.pop(id(stream), None)

    async def _answer(self, model: str, stream: Stream) -> None:
        text = f"{model}{model}@{self.group.name}"
        for at, letter in enumerate(text):
            await asyncio.sleep(0)
            await self.pace.wait()
            if at == self.stop_after:
                self.pace.clear()
                await self.pace.wait()
            if id(stream) not in self.streams:
                return
            for job in stream.jobs:
                self.seen.append(job.request_id)
                reason = "stop" if at + 1 == len(text) else None
                stream.put(Delta(job.request_id, 0, [at + 1], letter, None, reason))
        self.streams.pop(id(stream), None)


class World:
    """Front door and fake groups.

    handles: of all groups that were ever started, by name.
    gaps: replicas of each model at every change, to see whether one was ever away.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        num_devices: int = 4,
        slos: dict[str, Slo] | None = None,
        api_key: str | None = None,
        load_wait_s: float = 5.0,
        least_stay_s: float = 0.0,
        models: Sequence[str] = NAMES,
        node_of: Callable[[int], str] = this_machine,
        **replanning: Any,
    ) -> None:
        self.handles: dict[str, FakeHandle] = {}
        self.bad_starts, self.bad_models = 0, set[str]()
        self.loading = asyncio.Event()
        self.loading.set()
        self.gaps: list[dict[str, int]] = []
        self.lost_devices: set[int] = set()
        config = ServerConfig(api_key=api_key)
        events = RecentEvents()
        capacity = Capacity(PROFILES, MEMORY, dict.fromkeys(NAMES, 20), BLOCK_SIZE)
        router = Router(SETTINGS)
        self.fleet = Fleet(
            placement,
            capacity,
            num_devices,
            router,
            least_stay_s=least_stay_s,
            starts=Backoff(0.02, 0.1),
            loads=Backoff(0.02, 0.1),
            tell=telling(events),
        )
        traffic = Traffic(list(models), 60.0)
        self.desk = Desk(self.fleet, traffic)
        folders = {name: str(Path("/nowhere") / name) for name in models}
        self.keeper = Keeper(
            self.fleet, self._launch, folders, lost_devices=lambda: self.lost_devices
        )
        tokenizer = tiny_tokenizer()
        made = [
            FrontModel(name, Path(), tokenizer, 200, 320, (slos or {}).get(name, Slo()))
            for name in models
        ]
        self.replanner = Replanner(
            self.keeper,
            traffic,
            settings=SETTINGS,
            executor=ThreadPoolExecutor(1),
            **({"every_s": 0.0, "devices_per_node": num_devices} | replanning),
        )
        self.lobby = Lobby(
            config,
            made,
            self.desk,
            self.keeper,
            FrontMetrics(self.fleet),
            events,
            load_wait_s=load_wait_s,
            node_of=node_of,
            pad=self,  # type: ignore[arg-type]
            replanner=self.replanner,
        )
        self.app = build_app(self.lobby, routes(config))

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        yield

    def _launch(self, group: LiveGroup) -> Any:
        self.handles[group.name] = FakeHandle(group, self)
        return self.handles[group.name]

    def note(self) -> None:
        counts = dict.fromkeys(NAMES, 0)
        for handle in self.handles.values():
            for model in handle.models:
                counts[model] += 1
        self.gaps.append(counts)

    @property
    def alive(self) -> list[FakeHandle]:
        """Handles of groups that live, by their devices."""
        there = [handle for handle in self.handles.values() if handle.lost is None]
        return sorted(there, key=lambda handle: handle.group.devices)

    def hosting(self, model: str) -> list[FakeHandle]:
        return [handle for handle in self.alive if model in handle.models]

    def hold(self) -> None:
        """Groups give no token until their ``pace`` is set."""
        for handle in self.alive:
            handle.pace.clear()

    async def holder(self) -> FakeHandle:
        """Wait for the one group that has a request."""
        await self.until(lambda: any(handle.streams for handle in self.alive))
        (found,) = [handle for handle in self.alive if handle.streams]
        return found

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until all is as desired."""

        def done() -> bool:
            observed = self.fleet.observed(self.keeper.clock())
            there = {g.devices: {r.model for r in g.replicas if r.ready} for g in observed.groups}
            wanted = {g.devices: set(g.models) for g in self.fleet.desired.groups}
            return there == wanted and not observed.busy

        await self.until(done)
        self.desk.check_invariants()


@dataclasses.dataclass
class Answer:
    """A whole HTTP response."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


@dataclasses.dataclass
class Client:
    """Asks an ASGI application, without a socket.

    left: set once the client is gone.
    """

    app: ASGIApp
    headers: dict[str, str]
    left: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    async def request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        raw = b"" if body is None else json.dumps(body).encode()
        told = {"host": "localhost", "content-type": "application/json", **headers}
        scope: Any = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        }
        incoming = [{"type": "http.request", "body": raw, "more_body": False}]
        found = Answer(0, {}, b"")

        async def receive() -> Any:
            if incoming:
                return incoming.pop()
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found.status_code = message["status"]
                found.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            else:
                found.content += message.get("body", b"")

        await self.app(scope, receive, send)
        return found

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.request("POST", path, body, self.headers | headers)

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path, None, self.headers)

    async def ask(self, model: str | None, prompt_len: int = 5, **headers: str) -> Answer:
        body: dict[str, Any] = {"prompt": [7] * prompt_len, "max_tokens": 20}
        if model is not None:
            body["model"] = model
        return await self.post("/v1/completions", body, **headers)

    async def text(self, model: str) -> str:
        answer = await self.ask(model)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]


@contextlib.asynccontextmanager
async def opened(world: World, key: str | None = None) -> AsyncIterator[Client]:
    """The world with its keeper at work."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(2 * LIMIT_S), world.lobby.running():
        yield Client(world.app, headers)
