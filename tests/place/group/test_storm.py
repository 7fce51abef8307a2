"""Groups die at random under traffic: every request is answered, and nothing is left."""

import asyncio
import os
import random
import signal

import pytest

from blocks.sched import QueueFull
from recipes.place.group import (
    GroupHandle,
    GroupLost,
    GroupSpec,
    Listener,
    LoadFailed,
    NotHosted,
    Replica,
    fork_group,
)
from recipes.serve.async_engine import Stream, StreamCancelled
from recipes.serve.job import Job
from tests.place.group.groups import LIMIT_S, SMALL, collect, eventually, on_loop, save_models
from tests.place.group.test_faults import descendants, pid_of
from tests.serve.models import EOS, tiny_decoder
from tests.serve.oracle import greedy
from tests.serve.ranks import is_alive
from tests.serve.test_engine import job


class Storm:
    """Some groups that are replaced as they die, and requests that try the next one."""

    def __init__(self, listener: Listener, folder: str, rng: random.Random) -> None:
        self.listener, self.folder, self.rng = listener, folder, rng
        self.handles: list[GroupHandle] = []
        self.all: list[GroupHandle] = []
        self.ended: dict[str, str] = {}

    async def start(self, number: int) -> None:
        spec = GroupSpec(group=f"g{number}", heartbeat_s=0.1, **SMALL)
        handle = self.listener.start(spec, fork_group, silence_s=2.0)
        self.all.append(handle)
        try:
            await handle.ready()
            await handle.load(Replica("m", self.folder, 512))
        except (GroupLost, LoadFailed):
            return
        self.handles.append(handle)

    async def ask(self, one: Job, leaves: bool) -> None:
        """One request from its beginning to its answer, wherever that is made."""
        stream: Stream | None = None
        while True:
            handle = self.rng.choice(self.handles) if self.handles else None
            try:
                if handle is None:
                    raise NotHosted("nobody is there")
                stream = await handle.submit("m", [one], stream=stream)
                if leaves:
                    await asyncio.sleep(self.rng.random() * 0.1)
                    stream.cancel("client_left")
                (answer,) = (await collect(stream)).values()
            except (GroupLost, NotHosted, QueueFull):
                await asyncio.sleep(0.02)
                continue
            except StreamCancelled:
                return self._end(one, "cancelled")
            (completion,) = answer.completions
            if completion.finish_reason != "error":
                expected = greedy(
                    tiny_decoder(seed=0), tuple(one.prompt_tokens), one.params.max_tokens or 0, EOS
                )
                assert completion.token_ids == expected
            return self._end(one, completion.finish_reason or "nothing")

    def _end(self, one: Job, how: str) -> None:
        assert one.request_id not in self.ended
        self.ended[one.request_id] = how

    async def strike(self, number: int) -> None:
        """Something happens to one of the groups, and another takes its place."""
        handle = self.rng.choice(self.handles)
        self.handles.remove(handle)
        kind = self.rng.choice(["kill", "stop", "end", "close", "unload"])
        if kind == "close":
            await handle.close()
        elif kind == "unload":
            await handle.unload("m", drain_s=self.rng.choice([None, 0.0, 0.1]))
        else:
            name = {"kill": "SIGKILL", "stop": "SIGSTOP", "end": "SIGTERM"}[kind]
            os.kill(pid_of(handle), signal.Signals[name])
            await handle.wait_lost()
        await self.start(number)


@pytest.mark.parametrize(
    ("seed", "strikes"),
    [(0, 3), *(pytest.param(seed, 12, marks=pytest.mark.nightly) for seed in range(1, 5))],
)
@on_loop
async def test_every_request_of_a_storm_is_answered_once(tmp_path, seed, strikes):
    rng = random.Random(seed)
    (folder,) = save_models(tmp_path, 0)
    listener = await Listener.open()
    storm = Storm(listener, str(folder), rng)
    try:
        await asyncio.gather(storm.start(0), storm.start(1))
        tasks = []
        for strike in range(strikes):
            for at in range(12):
                prompt = [rng.randrange(1, 300) for _ in range(rng.randint(1, 12))]
                one = job(f"r{strike}-{at}", prompt, max_tokens=rng.randint(1, 20))
                tasks.append(asyncio.create_task(storm.ask(one, rng.random() < 0.2)))
            await asyncio.sleep(rng.random() * 0.05)
            await storm.strike(strike + 2)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*tasks)
        assert len(storm.ended) == strikes * 12
        answered = sum(how in ("length", "stop") for how in storm.ended.values())
        assert answered >= strikes, "those of the groups that nothing happens to"
        for handle in storm.all:
            handle._streams.check_invariants()
            assert handle.num_in_flight == 0
        gone = [pid_of(handle) for handle in storm.all if handle.lost is not None]
        assert gone
        await eventually(lambda: not any(map(is_alive, gone)))
    finally:
        await listener.close()
    await eventually(lambda: not any(is_alive(pid_of(handle)) for handle in storm.all))


@on_loop
async def test_a_front_door_that_is_killed_takes_its_groups_along(tmp_path):
    (folder,) = save_models(tmp_path, 0)
    told = tmp_path / "told"

    async def front_door() -> None:
        listener = await Listener.open()
        pids = []
        for group in ("a", "b"):
            spec = GroupSpec(group=group, tp=2, devices=(0, 1), **SMALL)
            handle = listener.start(spec, fork_group)
            await handle.ready()
            await handle.load(Replica("m", str(folder), 512))
            pids += [pid_of(handle), *descendants(pid_of(handle))]
        told.with_suffix(".new").write_text(" ".join(map(str, pids)))
        told.with_suffix(".new").rename(told)
        await asyncio.sleep(600)

    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(front_door())
        finally:
            os._exit(1)
    pids: list[int] = []
    try:
        await eventually(told.exists)
        pids = [int(word) for word in told.read_text().split()]
        assert len(pids) == 6
        assert all(map(is_alive, pids))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    await eventually(lambda: not any(map(is_alive, pids)))
