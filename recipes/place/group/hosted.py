"""``Hosted``: a model on a group, its engine and what is due when."""

import collections
import itertools
import math
import time
from collections.abc import Callable, Sequence

from blocks.sched import Batch
from blocks.sched.cluster_sim.generation import standing
from blocks.sched.request import State
from recipes.place.group.messages import Host, Unload
from recipes.place.group.state import ModelState
from recipes.serve.engine import Engine
from recipes.serve.job import Job
from recipes.serve.outputs import Delta


class Promise:
    """What was asked of a request that runs, and what it has got.

    due_s: when its first token is wanted, on the group's clock. tpot_s: for every later one.
    first_s: when the first one came.
    """

    __slots__ = ("due_s", "first_s", "num_open", "num_output", "tpot_s")

    def __init__(self, num_samples: int, due_s: float, tpot_s: float) -> None:
        self.due_s, self.tpot_s = due_s, tpot_s
        self.first_s: float | None = None
        self.num_open = num_samples
        self.num_output = [0] * num_samples


class Hosted:
    """One model of a group from the order to load it to its end.

    order: to host it. unloads: orders to end it, to be answered together.
    engine: None while loading, and once its memory is being given back.
    busy: its engine may not step just now, for its processes are started anew.
    turn: number of the group's last step that was this model's.
    drain_until_s: when running requests are given up; None while it is not draining.
    """

    def __init__(self, order: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self.order = order
        self.unloads: list[Unload] = []
        self.engine: Engine | None = None
        self.closing = False
        self.busy = False
        self.turn = 0
        self.drain_until_s: float | None = None
        self._clock = clock
        self._begun: Callable[[Hosted, Batch], object] | None = None
        self._promises: dict[str, Promise] = {}
        self._num_finished = self._output_sum = 0
        self._last_step_s = 0.0
        self._sent_s: collections.deque[float] = collections.deque()

    @property
    def model(self) -> str:
        return self.order.replica.model

    @property
    def is_draining(self) -> bool:
        return bool(self.unloads)

    @property
    def may_step(self) -> bool:
        return self.engine is not None and not self.busy and self.engine.has_work()

    @property
    def num_out(self) -> int:
        """Batches of its that are under way."""
        return 0 if self.engine is None else self.engine.num_out

    @property
    def is_drained(self) -> bool:
        """Whether it is to go, and can."""
        idle = self.engine is not None and not self.busy and not self.engine.has_work()
        return self.is_draining and idle

    def serve(self, engine: Engine) -> None:
        """The model has been loaded."""
        self.engine = engine
        engine.on_batch = self._on_batch

    def add(self, jobs: Sequence[Job], ttft_s: float, tpot_s: float) -> None:
        """Queue jobs, all or none.

        Raises:
            ValueError, QueueFull: as ``Engine.add``.
        """
        assert self.engine is not None
        added: list[Job] = []
        try:
            for job in jobs:
                self.engine.add(job)
                added.append(job)
        except Exception:
            for job in added:
                self.engine.cancel(job.request_id)
            raise
        due_s = self._clock() + ttft_s
        for job in jobs:
            self._promises[job.request_id] = Promise(job.params.n, due_s, tpot_s)

    def cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if self._promises.pop(request_id, None) is not None and self.engine is not None:
                self.engine.cancel(request_id)

    def step(self, begun: Callable[["Hosted", Batch], object]) -> list[Delta]:
        """One step of the engine.

        Args:
            begun: told of what will be computed.
        """
        assert self.engine is not None
        self._begun = begun
        began_s = self._clock()
        try:
            deltas = self.engine.step()
        finally:
            self._begun = None
        now_s = self._clock()
        self._last_step_s = now_s - began_s
        return self._noted(deltas, now_s)

    def begin(self, begun: Callable[["Hosted", Batch], object], num_batches: int) -> list[Delta]:
        """Half a step, see ``Engine.begin``: send out a batch, if there is anything to send."""
        assert self.engine is not None
        self._begun, sent_s, num_out = begun, self._clock(), self.engine.num_out
        try:
            deltas = self.engine.begin(num_batches)
        finally:
            self._begun = None
        if self.engine.num_out > num_out:
            self._sent_s.append(sent_s)
        self._forget_through()
        return self._noted(deltas, self._clock())

    def finish(self) -> list[Delta]:
        """The other half: wait for the first of the batches under way."""
        assert self.engine is not None
        deltas = self.engine.finish()
        now_s = self._clock()
        self._last_step_s = now_s - self._sent_s[0]
        self._forget_through()
        return self._noted(deltas, now_s)

    def _forget_through(self) -> None:
        """When batches were sent that are under way no more: the first, or all where all are
        lost."""
        while len(self._sent_s) > self.num_out:
            self._sent_s.popleft()

    def _on_batch(self, batch: Batch) -> None:
        if self._begun is not None:
            self._begun(self, batch)

    def abort(self, error: str, *, lost: bool = False) -> list[Delta]:
        """End every request with an error; ``lost`` as in ``Delta``."""
        assert self.engine is not None
        return self._noted(self.engine.abort_all(error, lost=lost), self._clock())

    def due_s(self) -> float:
        """When the most urgent of the next tokens is due, by the rule that clusters are simulated
        by: a first token by its request's limit, a later one so many times the limit for one
        behind the first.
        """
        assert self.engine is not None
        least = math.inf
        for request_id, promise in self._promises.items():
            for sequence in self.engine.scheduler.sequences(request_id):
                due_s = promise.due_s
                if sequence.state is State.DECODING and promise.first_s is not None:
                    due_s = promise.first_s + sequence.num_output * promise.tpot_s
                least = min(least, due_s)
        return least

    def state(self) -> ModelState:
        """What stands in the engine."""
        if self.engine is None:
            return ModelState("draining" if self.closing else "loading")
        engine, scheduler, manager = self.engine, self.engine.scheduler, self.engine.manager
        size, finished = engine.runner.block_size, self._num_finished
        live = itertools.chain.from_iterable(map(scheduler.sequences, self._promises))
        stands = standing(
            live,
            block_size=size,
            num_free_blocks=manager.num_free_blocks,
            expected_output=self._output_sum / finished if finished else 1.0,
        )
        return ModelState(
            status="draining" if self.is_draining else "serving",
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            usable_blocks=manager.num_usable_blocks,
            block_size=size,
            last_step_s=self._last_step_s,
            standing=stands,
            stats=engine.stats(),
        )

    def _noted(self, deltas: list[Delta], now_s: float) -> list[Delta]:
        for delta in deltas:
            promise = self._promises.get(delta.request_id)
            if promise is None:
                continue
            if delta.token_ids:
                promise.num_output[delta.index] += len(delta.token_ids)
                promise.first_s = now_s if promise.first_s is None else promise.first_s
            if delta.finish_reason is not None:
                self._num_finished += 1
                self._output_sum += promise.num_output[delta.index]
                promise.num_open -= 1
                if not promise.num_open:
                    del self._promises[delta.request_id]
        return deltas
