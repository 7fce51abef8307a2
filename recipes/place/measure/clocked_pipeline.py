"""``ClockedPipeline``: a ``ClockedGroup`` whose batches follow one another through stages."""

import asyncio
import collections
from collections.abc import Callable, Mapping

from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import Load, load_of
from recipes.place.group.hosted import Hosted
from recipes.place.group.state import GroupState, UnderWay
from recipes.place.group.step_log import Step
from recipes.place.group.turns import who_may_send
from recipes.place.measure.clocked_group import ClockedGroup, processor_time
from recipes.serve.engine import Engine
from recipes.serve.outputs import Delta

HalfCost = Callable[
    [Engine, Callable[[], list[Delta]]], tuple[list[Delta], float, tuple[float, ...]]
]
"""Runs half a step of an engine: what came of it, how many seconds it counts for in the group's
own process, and what it computed in every stage, if that half has sent out a batch."""


class ClockedPipeline(ClockedGroup):
    """A group's engines and turns without its processes, every stage on a clock of its own.

    Args:
        engines: by model; their runners compute whatever they are given at once, and have as many
            batches under way as the group.
        cost: what half a step counts for.
        turns: as ``GroupSpec``.
    """

    def __init__(self, engines: Mapping[str, Engine], cost: HalfCost, turns: str = "due") -> None:
        self._sent: collections.deque[tuple[float, Load]] = collections.deque()
        self._before: tuple[float, Load] | None = None
        super().__init__(engines, processor_time, turns)
        self._half_cost = cost
        self._depth = max(engine.runner.depth for engine in engines.values())
        self._free_s: list[float] = []
        self._through_s: collections.deque[float] = collections.deque()
        self._waiting: asyncio.TimerHandle | None = None

    def _plan(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting, self._is_planned = None, False
        super()._plan()

    def _begin(self) -> None:
        """Send out a batch if one may be sent, else wait for the first that is under way."""
        self._waiting = None
        working = [one for one in self._hosted.values() if one.may_step]
        if not working:
            self._is_planned = False
            self._tell()
            return
        able, num_batches = who_may_send(working, self._turns, self._depth)
        if any(self._sends(one, num_batches) for one in able):
            return
        holder = next(one for one in working if one.num_out)
        self._waiting = self._loop.call_at(self._through_s[0], self._finish, holder)

    def _sends(self, hosted: Hosted, num_batches: int) -> bool:
        engine, now_s, num_out = hosted.engine, self._loop.time(), hosted.num_out
        assert engine is not None
        deltas, own_s, stage_s = self._half_cost(
            engine, lambda: hosted.begin(self._begun, num_batches)
        )
        assert not deltas, f"a batch that cannot be computed: {deltas}"
        if hosted.num_out == num_out:
            return False
        self._num_steps += 1
        hosted.turn = self._num_steps
        at_s = now_s + own_s
        if not self._through_s:
            self._free_s = [at_s] * len(stage_s)
        for stage, seconds in enumerate(stage_s):
            at_s = self._free_s[stage] = max(at_s, self._free_s[stage]) + seconds
        self._through_s.append(at_s)
        self._loop.call_at(now_s + own_s, self._begin)
        return True

    def _begun(self, hosted: Hosted, batch: Batch) -> None:
        self._sent.append((self._loop.time(), load_of(batch)))
        self._tell(hosted.model)

    def _finish(self, hosted: Hosted) -> None:
        engine, now_s = hosted.engine, self._loop.time()
        assert engine is not None
        self._waiting = None
        deltas, own_s, _ = self._half_cost(engine, hosted.finish)
        self._through_s.popleft()
        sent_s, load = self._sent.popleft()
        self._before = (now_s, load) if self._sent else None
        self.steps.append(Step(sent_s, now_s + own_s - sent_s, hosted.model, load))
        self._tell(hosted.model if self._sent else "")
        self._loop.call_at(now_s + own_s, self._end, deltas)

    def _tell(self, stepping: str = "", load: Load | None = None) -> None:
        models = {model: hosted.state() for model, hosted in self._hosted.items()}
        now_s, before = self._loop.time(), self._before
        self.state = GroupState(
            models,
            num_steps=self._num_steps,
            seen=self._num_sent,
            stepping=stepping,
            under_way=tuple(UnderWay(load, now_s - sent_s) for sent_s, load in self._sent),
            before=UnderWay(before[1], now_s - before[0]) if before else None,
        )
        self.state_s = now_s
        self._streams.seen(self._num_sent)
