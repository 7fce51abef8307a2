"""A whole service on this test's event loop: front door, real groups, and clients that never stop.

Every answer is checked: either the tokens that one process would have made, or an error that says
so, behind no token or behind the right ones.
"""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from recipes.model import save_model
from recipes.place.config import Cluster, EngineLimits, PlaceConfig, PlacedModel, Serving
from recipes.place.fleet import Action, Fleet, LiveGroup
from recipes.place.fleet.keeper import Keeper
from recipes.place.front import Launcher, Server, build_lobby
from recipes.serve.config import ServerConfig
from recipes.serve.server import listen
from tests.place.fleet.clusters import profile
from tests.place.on_loop import LIMIT_S, eventually
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy

SEEDS = {"a": 0, "b": 1}
"""Of the models' weights."""
PROMPTS = ([5, 6, 7], [40, 41, 42, 43], [9, 8, 7, 6, 5], [30, 31])
MAX_TOKENS = 16
KV_TOKENS = 1024


@functools.cache
def expected(model: str, prompt: int) -> list[int]:
    """The tokens that one process makes."""
    return greedy(tiny_decoder(seed=SEEDS[model]), tuple(PROMPTS[prompt]), MAX_TOKENS, EOS)


def save_models(folder: Path) -> dict[str, Path]:
    found = {}
    for name, seed in SEEDS.items():
        found[name] = folder / name
        save_model(tiny_decoder(seed=seed), found[name], tiny_tokenizer())
    return found


def group(devices: Sequence[int], *models: str, tp: int = 1) -> Group:
    rooms = (KV_TOKENS,) * len(models)
    return Group(tuple(devices), Configuration(tp, 1), models, rooms)


@dataclasses.dataclass
class Answers:
    """What became of requests: right ones and told errors, by model; anything else is ``wrong``.

    survived: faults so far.
    """

    right: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    told: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    asked: int = 0
    survived: int = 0

    @property
    def answered(self) -> int:
        return sum(self.right.values()) + len(self.told) + len(self.wrong)


class RealService:
    """A front door, its groups and a client.

    rounds: the keeper's actions of every round that had any.
    """

    def __init__(self, fleet: Fleet, keeper: Keeper, port: int) -> None:
        self.fleet, self.keeper, self._port = fleet, keeper, port
        self.rounds: list[tuple[Action, ...]] = []
        steps = fleet.steps

        def noted(now_s: float) -> tuple[Action, ...]:
            found = steps(now_s)
            if found:
                self.rounds.append(found)
            return found

        fleet.steps = noted  # type: ignore[method-assign]

    def live(self, *devices: int) -> LiveGroup:
        return self.fleet.groups[devices]

    def is_whole(self) -> bool:
        """Whether what is there is what is desired."""
        there = {
            g.devices: sorted(m for m, r in g.replicas.items() if r.state == "ready")
            for g in self.fleet.groups.values()
            if g.state == "ready"
        }
        wanted = {g.devices: sorted(g.models) for g in self.fleet.desired.groups}
        return there == wanted and len(self.fleet.groups) == len(wanted)

    async def whole(self) -> None:
        """Wait until it is, and stays so for a look of the keeper."""
        await eventually(self.is_whole)

    async def ask(self, answers: Answers, model: str, prompt: int, *, stream: bool) -> None:
        """One request, judged."""
        answers.asked += 1
        body = {
            "model": model,
            "prompt": PROMPTS[prompt],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "return_token_ids": True,
            "stream": stream,
        }
        try:
            async with asyncio.timeout(LIMIT_S):
                tokens, error, ended = await self._post(body)
        except Exception as failure:
            answers.wrong.append(f"{model}: no answer: {failure!r}")
            return
        wanted = expected(model, prompt)
        if error:
            right = tokens == wanted[: len(tokens)]
            (answers.told if right else answers.wrong).append(f"{model}: {error} after {tokens}")
        elif ended and tokens == wanted:
            answers.right[model] += 1
        else:
            answers.wrong.append(f"{model}: {tokens}, not {wanted}; ended: {ended}")

    async def _post(self, body: dict[str, Any]) -> tuple[list[int], str | None, bool]:
        """Tokens, error, and whether the answer came to its end.

        The end is where the answer says it is: a forked group may keep its connection open.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            raw = json.dumps(body).encode()
            head = "POST /v1/completions HTTP/1.0\r\nHost: 127.0.0.1\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            writer.write(head.encode() + raw)
            status = int((await reader.readline()).split()[1])
            length = 0
            while line := (await reader.readline()).strip():
                name, _, value = line.lower().partition(b":")
                length = int(value) if name == b"content-length" else length
            if status != 200:
                message = json.loads(await reader.readexactly(length))["error"]["message"]
                return [], f"{status} {message}", True
            if not body["stream"]:
                found = json.loads(await reader.readexactly(length))
                return found["choices"][0]["token_ids"], None, True
            tokens: list[int] = []
            while line := await reader.readline():
                if line.strip() == b"data: [DONE]":
                    return tokens, None, True
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return tokens, event["error"]["message"], True
                    for choice in event.get("choices", ()):
                        tokens += choice.get("token_ids") or []
            return tokens, None, False
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def asked(
        self, num_clients: int = 4, *, into: Answers | None = None
    ) -> AsyncIterator[Answers]:
        """Clients that ask one thing after another; afterwards every request has been answered."""
        answers, over = Answers() if into is None else into, asyncio.Event()

        async def client(seed: int) -> None:
            rng, model = random.Random(seed), list(SEEDS)[seed % len(SEEDS)]
            while not over.is_set():
                prompt = rng.randrange(len(PROMPTS))
                await self.ask(answers, model, prompt, stream=rng.random() < 0.7)
                await asyncio.sleep(0.15)  # what is started needs the processor, too

        tasks = [asyncio.create_task(client(seed)) for seed in range(num_clients)]
        try:
            yield answers
        finally:
            over.set()
            await asyncio.gather(*tasks)
        assert not answers.wrong, answers.wrong[:3]
        assert not [text for text in answers.told if ": 500 " in text], answers.told
        assert answers.answered == answers.asked


@contextlib.asynccontextmanager
async def real_service(
    placement: Placement,
    folders: Mapping[str, Path],
    *,
    num_devices: int,
    launcher: Launcher,
) -> AsyncIterator[RealService]:
    """Groups are started at once; the service is whole when this enters."""
    config = PlaceConfig(
        tuple(PlacedModel(name=name, folder=str(folders[name])) for name in SEEDS),
        Cluster(num_devices=num_devices, memory="1GiB"),
        EngineLimits(token_budget=64, max_num_seqs=8, block_size=4, max_model_len=256),
        serving=Serving(replan_every_s=0, start_s=LIMIT_S, load_wait_s=LIMIT_S, max_restarts=20),
    )
    profiles = {name: profile(name) for name in SEEDS}
    server_config = ServerConfig(port=1)
    lobby = build_lobby(config, profiles, placement, server_config, launcher)
    sock = listen("127.0.0.1", 0)
    server = Server(lobby)
    serving = asyncio.create_task(server.serve([sock]))
    try:
        service = RealService(lobby.desk.fleet, lobby.keeper, sock.getsockname()[1])
        await eventually(lambda: service.is_whole() or serving.done())
        yield service
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=LIMIT_S)
        sock.close()
