"""``GroupWorker``: the engines of a group, and whose turn it is."""

import os
import queue
import threading
import time
from collections.abc import Callable

import torch

from blocks.sched import QueueFull
from recipes.place.group.inbox import Inbox
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
from recipes.place.group.shelf import Event, Shelf
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState
from recipes.place.group.steps import Steps
from recipes.serve.admission import ContextTooLong
from recipes.serve.outputs import Delta
from recipes.serve.parallel import Start

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
        self._inbox: Inbox[Order | Event | None] = Inbox()
        self._shelf = Shelf(spec, start_ranks, host, self._inbox.put, self._answer)
        models, inbox = self._shelf.models, self._inbox
        self._steps = Steps(spec, models, inbox, self._tell_deltas, self._tell_state)
        self._seen = 0
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
                self._steps.take(self._to_deadline_s())
        finally:
            self._line.close()
            self._shelf.close()
            self._steps.close()
            self._inbox.close()
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
        return self._steps.told(self._state)

    # ---- orders ----

    def _obey_all(self) -> bool:
        """Whatever has come; waits for something where there is nothing to do. False at the end."""
        while True:
            try:
                wait_s = self._patience_s()
                if wait_s != 0:
                    self._steps.waited()
                item = self._inbox.get(wait_s)
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
        return self._to_deadline_s()

    def _to_deadline_s(self) -> float | None:
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
            self._tell_deltas(self._steps.contain(hosted))
            return Refused(order.number, "internal", type(error).__name__)
        return Done(order.number)

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
        models = {name: hosted.state() for name, hosted in self._shelf.models.items()}
        used_bytes = self._shelf.memory.used()
        self._state = GroupState(models, used_bytes, self._steps.num_steps, self._seen)
        self._line.tell(Beat(self._beat()))
