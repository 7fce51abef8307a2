"""The whole service on a loopback socket, its groups forks of this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from blocks.sched.placement import Placement
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
from tests.place.on_loop import LIMIT_S, eventually

ONE, TWO = Configuration(1, 1), Configuration(2, 1)


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
            "serving": {"replan_every_s": 0, "heartbeat_s": 1.0},
        }
    )
    profiles = {name: tiny_profile(name) for name in names}
    moments, asked = [0.1 * at for at in range(12)], [at % len(names) for at in range(12)]
    planned = Workload.of(names, moments, asked, prompt_len=8, output_len=4, slo_s=1.0, tpot_s=1.0)
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
