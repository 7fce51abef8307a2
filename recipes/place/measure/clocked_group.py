"""``ClockedGroup``: real engines in this process, on the clock of the running loop."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import Load, load_of
from recipes.place.group.hosted import Hosted
from recipes.place.group.messages import Host
from recipes.place.group.replica import Replica
from recipes.place.group.state import GroupState, UnderWay
from recipes.place.group.step_log import Step
from recipes.place.group.streams import Streams
from recipes.place.group.taken import OnLost, Taken
from recipes.place.group.turns import whose_turn
from recipes.serve.engine import Engine
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.stream import Stream

Cost = Callable[[Engine, Callable[[], list[Delta]]], tuple[list[Delta], float]]
"""Runs a step of an engine; what came of it and how many seconds it counts for."""


class ClockedGroup:
    """A group's engines and turns without its process: every step is computed at once, and told
    when its seconds have passed on the loop's clock.

    On a ``VirtualTimeLoop`` that is a cluster on any clock: of processor time where ``cost`` is
    ``processor_time``, so that neighbours on the machine do not count.

    Args:
        engines: by model.
        cost: what a step counts for.
        turns: as ``GroupSpec``.

    steps: all that it has taken, on the loop's clock.
    state: how it was at ``state_s``, on that clock too: when its last step began, or since when it
        has nothing to do.
    """

    def __init__(self, engines: Mapping[str, Engine], cost: Cost, turns: str = "due") -> None:
        self._loop = asyncio.get_running_loop()
        self._cost, self._turns = cost, turns
        self._ahead_s = 0.0
        self._hosted: dict[str, Hosted] = {}
        for model, engine in engines.items():
            hosted = Hosted(Host(0, Replica(model, "", 1)), self._now_s)
            hosted.serve(engine)
            self._hosted[model] = hosted
        self._streams = Streams()
        self._num_sent = self._num_steps = 0
        self._is_planned = False
        self._load: Load | None = None
        self.steps: list[Step] = []
        self._tell()

    async def submit(
        self,
        model: str,
        jobs: Sequence[Job],
        *,
        ttft_s: float,
        tpot_s: float,
        on_lost: OnLost | None = None,
    ) -> Stream:
        """As ``GroupHandle.submit``."""
        self._hosted[model].add(jobs, ttft_s, tpot_s)
        stream = Stream(jobs, lambda *_: None)
        self._num_sent += 1
        self._streams.add(self._num_sent, Taken(stream, model, on_lost))
        self._plan()
        return stream

    def unseen(self, model: str) -> tuple[int, ...]:
        """As ``GroupHandle.unseen``."""
        return self._streams.unseen(model)

    def _now_s(self) -> float:
        return self._loop.time() + self._ahead_s

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        ready = [one for one in self._hosted.values() if one.may_step]
        if not ready:
            self._is_planned = False
            self._tell()
            return
        hosted = whose_turn(ready, self._turns)
        self._num_steps += 1
        hosted.turn = self._num_steps
        deltas, seconds = self._stepped(hosted)
        if self._load is not None:
            self.steps.append(Step(self._loop.time(), seconds, hosted.model, self._load))
        self._loop.call_at(self._loop.time() + seconds, self._end, deltas)

    def _stepped(self, hosted: Hosted) -> tuple[list[Delta], float]:
        """The step, with the clock ahead by its seconds once it is computed."""
        engine = hosted.engine
        assert engine is not None
        step, self._load = engine.step, None

        def timed() -> list[Delta]:
            deltas, self._ahead_s = self._cost(engine, step)
            return deltas

        engine.step = timed  # type: ignore[method-assign]
        try:
            return hosted.step(self._begun), self._ahead_s
        finally:
            self._ahead_s = 0.0
            del engine.step  # the method is seen again

    def _begun(self, hosted: Hosted, batch: Batch) -> None:
        self._load = load_of(batch)
        self._tell(hosted.model, self._load)

    def _end(self, deltas: list[Delta]) -> None:
        self._streams.deliver(deltas)
        self._begin()

    def _tell(self, stepping: str = "", load: Load | None = None) -> None:
        models = {model: hosted.state() for model, hosted in self._hosted.items()}
        under_way = () if load is None else (UnderWay(load, 0.0),)
        counts = self._num_steps, self._num_sent
        self.state = GroupState(models, (), *counts, stepping, under_way=under_way)
        self.state_s = self._loop.time()
        self._streams.seen(self._num_sent)


def processor_time(engine: Engine, step: Callable[[], list[Delta]]) -> tuple[list[Delta], float]:
    """A step counts for the processor time of this process that it takes."""
    began_s = time.process_time()
    deltas = step()
    return deltas, time.process_time() - began_s
