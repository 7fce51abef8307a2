"""``GroupWorker``: the engines of a group, and whose turn it is."""

import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

import torch

from blocks.sched import Batch, QueueFull
from blocks.sched.cluster_sim.generation import Load, load_of
from recipes.place.group.hosted import Hosted
from recipes.place.group.line import Line
from recipes.place.group.messages import (
    Beat,
    Cancel,
    Deltas,
    Done,
    Host,
    Order,
    Refused,
    Report,
    Stop,
    Submit,
    Unload,
    Up,
)
from recipes.place.group.shelf import Event, Shelf, in_thread, why
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState
from recipes.place.group.step_log import Step, StepLog
from recipes.place.group.turns import whose_turn
from recipes.serve.admission import ContextTooLong
from recipes.serve.outputs import Delta
from recipes.serve.parallel import ParallelRunner, Start

log = logging.getLogger("recipes.place")
ORPHAN_S = 5.0
"""How long a group whose front door is gone may take to end its ranks."""


class GroupWorker:
    """Obeys the front door's orders, and lets the models' engines take steps in turns.

    Only the thread of ``run`` touches engines. Orders, and the events that other threads cause,
    come to it through one queue.
    """

    def __init__(
        self,
        spec: GroupSpec,
        start_ranks: Start,
        host: str | None,
        orphaned: Callable[[int], object],
    ) -> None:
        self.spec = spec
        self._last_resort = threading.Timer(ORPHAN_S, orphaned, [1])
        self._last_resort.daemon = True
        self._inbox: queue.SimpleQueue[Order | Event | None] = queue.SimpleQueue()
        self._shelf = Shelf(spec, start_ranks, host, self._inbox.put, self._answer)
        self._step: tuple[str, float, Load | None] | None = None
        self._num_steps = self._seen = 0
        self._log = StepLog(spec.step_log) if spec.step_log else None
        self._free_s: float | None = None  # since when, if it has not waited for orders since
        self._told = (0.0, 0.0)  # when a state was told last, and how long that took
        self._state = GroupState(used_bytes=self._shelf.memory.used())
        torch.set_num_threads(spec.num_threads)
        self._line = Line(spec, self._take, self._beat)

    def run(self) -> None:
        self._line.start()
        self._line.tell(Up(os.getpid()))
        self._tell_state()
        try:
            while self._obey_all():
                self._tell_deltas(self._shelf.give_up_late())
                self._shelf.close_drained()
                ready = [one for one in self._shelf.models.values() if one.may_step]
                if ready:
                    self._take_step(whose_turn(ready, self.spec.turns))
        finally:
            self._line.close()
            self._shelf.close()
            if self._log is not None:
                self._log.close()
            self._last_resort.cancel()  # before its start too

    def end(self) -> None:
        """Let ``run`` return soon; from a signal handler too."""
        self._inbox.put(None)

    # ---- the line's threads ----

    def _take(self, order: Order | None) -> None:
        self._inbox.put(order)
        if order is None:
            self._last_resort.start()

    def _beat(self) -> GroupState:
        step = self._step
        if step is None:
            return self._state
        model, began_s, load = step
        seconds = time.monotonic() - began_s
        return dataclasses.replace(self._state, stepping=model, load=load, step_s=seconds)

    # ---- orders ----

    def _obey_all(self) -> bool:
        """Whatever has come; waits for something where there is nothing to do. False at the end."""
        while True:
            try:
                wait_s = self._patience_s()
                if wait_s != 0:
                    self._free_s = None
                item = self._inbox.get(block=wait_s != 0, timeout=wait_s or None)
            except queue.Empty:
                return True
            if item is None or isinstance(item, Stop):
                return False
            if isinstance(item, Host):
                self._shelf.load(item)
            elif isinstance(item, Unload):
                self._shelf.unload(item)
            elif isinstance(item, Submit):
                self._seen = item.number
                self._line.tell(self._submit(item))
            elif isinstance(item, Cancel):
                if item.model in self._shelf.models:
                    self._shelf.models[item.model].cancel(item.request_ids)
                self._tell_state()
            else:
                item()

    def _patience_s(self) -> float | None:
        """How long to wait for an order: not at all with work to do, else to the next deadline."""
        if any(one.may_step or one.is_drained for one in self._shelf.models.values()):
            return 0
        deadline_s = self._shelf.next_deadline_s()
        return None if deadline_s is None else max(deadline_s - time.monotonic(), 0.001)

    def _submit(self, order: Submit) -> Report:
        hosted = self._shelf.models.get(order.model)
        if hosted is None or hosted.engine is None or hosted.is_draining:
            text = f"group {self.spec.group} does not serve model {order.model}"
            return Refused(order.number, "not_hosted", text)
        try:
            hosted.add(order.jobs, order.ttft_s, order.tpot_s)
        except QueueFull as error:
            return Refused(order.number, "queue_full", str(error))
        except ContextTooLong as error:
            numbers = (error.limit, error.prompt, error.wanted)
            return Refused(order.number, "too_long", str(error), numbers)
        except ValueError as error:
            return Refused(order.number, "value", str(error))
        except Exception as error:  # the engine's own fault: as in a step
            self._tell_deltas(self._contain(hosted))
            return Refused(order.number, "internal", type(error).__name__)
        return Done(order.number)

    # ---- steps ----

    def _take_step(self, hosted: Hosted) -> None:
        if self._starts_ranks(hosted):
            return
        self._num_steps += 1
        hosted.turn = self._num_steps
        began_s = time.monotonic() if self._free_s is None else self._free_s
        self._step = (hosted.model, time.monotonic(), None)
        load = None
        try:
            deltas = hosted.step(self._begun)
        except Exception:  # the engine contains what requests cause; this is its own fault
            deltas = self._contain(hosted)
        finally:
            if self._step is not None:
                load = self._step[2]
            self._step = None
        self._tell_deltas(deltas)
        self._free_s = time.monotonic()
        if self._log is not None and load is not None:
            self._log.add(Step(began_s, self._free_s - began_s, hosted.model, load))
        if not hosted.may_step:
            self._tell_state()

    def _begun(self, hosted: Hosted, batch: Batch) -> None:
        """A step has been scheduled and is computed next; it is told of, for a share of the time
        that is larger where the step will be long.
        """
        load, now_s = load_of(batch), time.monotonic()
        self._step = (hosted.model, now_s, load)
        told_s, took_s = self._told
        if now_s - told_s >= (4 if load.num_prompt else 20) * took_s:
            self._tell_state()

    def _contain(self, hosted: Hosted) -> list[Delta]:
        log.exception("group %s: the engine of %s failed", self.spec.group, hosted.model)
        return hosted.abort("internal engine error")

    # ---- ranks that were lost ----

    def _starts_ranks(self, hosted: Hosted) -> bool:
        """Where a model's processes are gone, start others while other models are served."""
        assert hosted.engine is not None
        runner = hosted.engine.runner
        if not isinstance(runner, ParallelRunner) or runner.is_running:
            return False
        hosted.busy = True
        in_thread(lambda: self._start_again(hosted, runner), "restart")
        return True

    def _start_again(self, hosted: Hosted, runner: ParallelRunner) -> None:
        error = ""
        try:
            runner.start()
        except Exception as caught:
            log.error("group %s: model %s: %s", self.spec.group, hosted.model, caught)
            error = why(caught)
        self._inbox.put(lambda: self._started_again(hosted, error))

    def _started_again(self, hosted: Hosted, error: str) -> None:
        hosted.busy = False
        if error:
            self._tell_deltas(hosted.abort(error, lost=True))

    # ---- telling ----

    def _tell_deltas(self, deltas: list[Delta]) -> None:
        if deltas:
            self._line.tell(Deltas(deltas))

    def _answer(self, reports: list[Report]) -> None:
        """Behind the state, so that whoever is answered finds it true."""
        self._tell_state()
        for report in reports:
            self._line.tell(report)

    def _tell_state(self) -> None:
        now_s = time.monotonic()
        models = {name: hosted.state() for name, hosted in self._shelf.models.items()}
        used_bytes = self._shelf.memory.used()
        self._state = GroupState(models, used_bytes, self._num_steps, self._seen)
        self._line.tell(Beat(self._beat()))
        self._told = (now_s, time.monotonic() - now_s)
