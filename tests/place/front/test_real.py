"""The whole service with real groups, forked, and the official client."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from blocks.sched.placement import Group, Placement
from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
)
from blocks.sched.workload import Workload
from recipes.place.config_file import parse_config
from recipes.place.front import Launcher, Lobby, Server, build_lobby, routes
from recipes.place.group import fork_group
from recipes.serve.config import ServerConfig
from recipes.serve.server import listen
from tests.place.group.groups import LIMIT_S, eventually, on_loop, save_models
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy

ONE, TWO = Configuration(1, 1), Configuration(2, 1)
PROMPT = [5, 6, 7, 8]


def tiny_profile(name: str) -> Profile:
    """About what a tiny model takes on a slow machine."""
    timings = tuple(
        Timing(
            shape,
            (400_000,),
            kv_bytes_per_token=1024,
            prefill=(PrefillTime(1, (0.01,)), PrefillTime(128, (0.02,))),
            decode=tuple(DecodeTime(b, c, (0.01 * b,)) for b in (1, 16) for c in (1, 256)),
        )
        for shape in (ONE, TWO)
    )
    return Profile(name, "CPU", (Provenance("derived", "made up"),), timings)


@contextlib.asynccontextmanager
async def serving(folders: list[Path], placement: Placement) -> AsyncIterator[tuple[Lobby, str]]:
    """A server on a loopback socket, groups and all."""
    names = [f"m{at}" for at in range(len(folders))]
    config = parse_config(
        {
            "models": [
                {"name": name, "folder": str(folder), "profile": "made up", "kv_tokens": 64}
                for name, folder in zip(names, folders, strict=True)
            ],
            "cluster": {"num_devices": 3, "memory": "16MiB"},
            "engine": {"token_budget": 64, "max_num_seqs": 8, "block_size": 4},
            "serving": {"replan_every_s": 0, "heartbeat_s": 0.2},
        }
    )
    profiles = {name: tiny_profile(name) for name in names}
    planned = Workload.of(names, [0.1 * at for at in range(12)], [at % 2 for at in range(12)],
                          prompt_len=8, output_len=4, slo_s=1.0, tpot_s=1.0)  # fmt: skip
    sock = listen("127.0.0.1", 0)
    limits = ServerConfig(port=sock.getsockname()[1])
    lobby = build_lobby(config, profiles, placement, limits, Launcher(fork_group), planned)
    server = Server(lobby, routes(limits))
    task = asyncio.create_task(server.serve([sock]))
    try:
        await eventually(lambda: server.started)
        yield lobby, f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        async with asyncio.timeout(LIMIT_S):
            await task


def settled(lobby: Lobby) -> bool:
    fleet = lobby.desk.fleet
    ready = {
        (group.devices, model)
        for group in fleet.groups.values()
        for model, replica in group.replicas.items()
        if replica.state == "ready"
    }
    return ready == {(g.devices, model) for g in fleet.desired.groups for model in g.models}


def expected(seed: int, max_tokens: int) -> str:
    tokens = greedy(tiny_decoder(seed=seed), tuple(PROMPT), max_tokens, EOS)
    return tiny_tokenizer().decode(tokens)


@on_loop
async def test_two_models_on_three_devices_outlive_a_killed_group(tmp_path):
    folders = save_models(tmp_path, 1, 2)
    placement = Placement(
        (Group((0,), ONE, ("m0", "m1"), (400, 400)), Group((1, 2), TWO, ("m0",), (400,)))
    )
    async with (
        serving(folders, placement) as (lobby, url),
        openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["m0", "m1"]

        async def text(model: str, max_tokens: int = 12, **more) -> str:
            answer = await client.completions.create(
                model=model, prompt=PROMPT, max_tokens=max_tokens, temperature=0, **more
            )
            return answer.choices[0].text

        # before anything is loaded: requests wait
        assert await asyncio.gather(text("m0"), text("m1")) == [expected(1, 12), expected(2, 12)]
        await eventually(lambda: settled(lobby))
        streamed = await client.completions.create(
            model="m1", prompt=PROMPT, max_tokens=12, temperature=0, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in streamed]) == expected(2, 12)
        with pytest.raises(openai.NotFoundError):
            await text("m2")
        with pytest.raises(openai.RateLimitError) as refused:
            await text("m0", extra_headers={"x-slo-ttft-ms": "1"})
        assert refused.value.body["predicted_ttft_s"] > 0.005  # type: ignore[index,call-overload]

        # a group of two ranks dies under load: every request is answered, most of them with text
        pair = lobby.desk.fleet.groups[1, 2]
        asks = [asyncio.create_task(text("m0", 60)) for _ in range(12)]
        await eventually(lambda: any(s.num_live for s in lobby.desk.router.seats()
                                     if s.devices == (1, 2)))  # fmt: skip
        os.kill(pair.handle.process.pid, signal.SIGKILL)
        answers = await asyncio.gather(*asks, return_exceptions=True)
        wrong = [one for one in answers if one != expected(1, 60)]
        assert all(isinstance(one, openai.APIStatusError) for one in wrong), wrong
        assert len(wrong) < len(answers)
        await eventually(lambda: settled(lobby))
        assert lobby.desk.fleet.groups[1, 2] is not pair
        assert await text("m0") == expected(1, 12)
        lobby.desk.check_invariants()

        # the search runs in a process of its own
        found = await lobby.replanner.look()
        assert found is not None
        assert 0 <= found.stay <= found.go <= 1
