"""Groups that die at random under traffic, and requests that try the next one."""

import asyncio
import dataclasses
import os
import random
import signal
from pathlib import Path

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
from recipes.place.group.local import LocalProcess
from recipes.serve.job import Job
from recipes.serve.stream import Stream, StreamCancelled
from tests.place.group.groups import SMALL, collect
from tests.place.on_loop import LIMIT_S, eventually
from tests.serve.models import EOS, tiny_decoder
from tests.serve.oracle import greedy
from tests.serve.ranks import is_alive
from tests.serve.test_engine import job

FAULTS = {"killed": "SIGKILL", "stopped": "SIGSTOP", "terminated": "SIGTERM"}
NUM_REQUESTS = 12
"""Between two faults."""


@dataclasses.dataclass
class Storm:
    """What happened.

    pp: stages of every group. ended: how every request did, by its id. faults: in their order.
    """

    listener: Listener
    folder: str
    rng: random.Random
    pp: int = 1
    handles: list[GroupHandle] = dataclasses.field(default_factory=list)
    gone: list[GroupHandle] = dataclasses.field(default_factory=list)
    ended: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)

    async def start(self, number: int) -> None:
        devices = tuple(range(self.pp))
        spec = GroupSpec(group=f"g{number}", heartbeat_s=0.1, pp=self.pp, devices=devices, **SMALL)
        handle = self.listener.start(spec, fork_group, silence_s=5.0)
        try:
            await handle.ready()
            await handle.load(Replica("m", self.folder, 512))
        except (GroupLost, LoadFailed):
            self.gone.append(handle)
        else:
            self.handles.append(handle)

    async def ask(self, one: Job, leaves: bool) -> None:
        """One request from its beginning to its answer, wherever that is made."""
        stream: Stream | None = None
        while True:
            try:
                if not self.handles:
                    raise NotHosted("nobody is there")
                stream = await self.rng.choice(self.handles).submit("m", [one], stream=stream)
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
                most = one.params.max_tokens or 0
                expected = greedy(tiny_decoder(seed=0), tuple(one.prompt_tokens), most, EOS)
                assert completion.token_ids == expected
            return self._end(one, completion.finish_reason or "nothing")

    def _end(self, one: Job, how: str) -> None:
        assert one.request_id not in self.ended
        self.ended[one.request_id] = how

    async def strike(self, number: int) -> None:
        """Something happens to one of the groups, and another takes its place."""
        handle = self.rng.choice(self.handles)
        self.handles.remove(handle)
        self.gone.append(handle)
        fault = self.rng.choice([*FAULTS, "closed", "unloaded"])
        self.faults.append(fault)
        if fault == "closed":
            await handle.close()
        elif fault == "unloaded":
            await handle.unload("m", drain_s=self.rng.choice([None, 0.0, 0.1]))
        else:
            os.kill(pid_of(handle), signal.Signals[FAULTS[fault]])
            await handle.wait_lost()
        await self.start(number)

    def check(self) -> None:
        """Every request of all groups has ended."""
        for handle in [*self.handles, *self.gone]:
            handle._streams.check_invariants()
            assert handle.num_in_flight == 0


async def run_storm(folder: Path, seed: int, num_faults: int, pp: int = 1) -> Storm:
    """Two groups under traffic, and faults; raises where a request is not answered once."""
    rng, listener = random.Random(seed), await Listener.open()
    storm = Storm(listener, str(folder), rng, pp)
    try:
        await asyncio.gather(storm.start(0), storm.start(1))
        tasks = []
        for fault in range(num_faults):
            for at in range(NUM_REQUESTS):
                prompt = [rng.randrange(1, 300) for _ in range(rng.randint(1, 12))]
                one = job(f"r{fault}-{at}", prompt, max_tokens=rng.randint(1, 20))
                tasks.append(asyncio.create_task(storm.ask(one, rng.random() < 0.2)))
            await asyncio.sleep(rng.random() * 0.05)
            await storm.strike(fault + 2)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*tasks)
        assert len(storm.ended) == num_faults * NUM_REQUESTS
        storm.check()
    finally:
        await listener.close()
    pids = [pid_of(handle) for handle in [*storm.handles, *storm.gone]]
    await eventually(lambda: not any(map(is_alive, pids)))
    return storm


def pid_of(handle: GroupHandle) -> int:
    assert isinstance(handle.process, LocalProcess)
    return handle.process.pid
