"""``run_group``: what the process of a group does, whoever started it."""

import dataclasses
import gc
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable

import torch

from blocks.sched import QueueFull
from recipes.model import read_config
from recipes.place.group.faults import LoadFailed
from recipes.place.group.footprint import device_bytes, kv_bytes
from recipes.place.group.hosted import Hosted
from recipes.place.group.line import Line
from recipes.place.group.memory import DeviceMemory
from recipes.place.group.messages import (
    Beat,
    Cancel,
    Deltas,
    Done,
    Load,
    Now,
    Order,
    Refused,
    Stop,
    Submit,
    Unload,
    Up,
)
from recipes.place.group.replica import Loaded
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState
from recipes.serve.admission import ContextTooLong
from recipes.serve.engine import Engine
from recipes.serve.loading import load
from recipes.serve.outputs import Delta
from recipes.serve.parallel import ParallelRunner, Start, exec_ranks

log = logging.getLogger("recipes.place")
LEAST_BEAT_S = 0.02
"""Between two states told after steps."""
ORPHAN_S = 5.0
"""How long a group whose front door is gone may take to end its ranks."""

Event = Callable[[], None]


def run_group(
    spec: GroupSpec,
    start_ranks: Start = exec_ranks,
    *,
    host: str | None = None,
    orphaned: Callable[[int], object] = os._exit,
) -> None:
    """Be a group: call the front door, and load, serve and unload models as it orders.

    Returns when the front door says stop or is gone, or at SIGTERM where that is set up.

    Args:
        start_ranks: brings ``tp * pp`` processes to life for every model, where that is above 1.
        host: address at which ranks on other machines can reach this one; see ``ParallelRunner``.
        orphaned: called with 1 when the front door is gone and this process cannot end by itself.

    Raises:
        OSError: nobody listens at the address.
        NotProven: whoever listens does not know the key.
    """
    worker = GroupWorker(spec, start_ranks, host, orphaned)
    previous = None
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, lambda *_: worker.end())
    try:
        worker.run()
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


class GroupWorker:
    """The models of a group and their turns.

    One thread, that of ``run``, touches engines; others load and close models and hand it what
    came of that as events, through the queue that orders come in.
    """

    def __init__(
        self,
        spec: GroupSpec,
        start_ranks: Start,
        host: str | None,
        orphaned: Callable[[int], object],
    ) -> None:
        self.spec = spec
        self.memory = DeviceMemory(spec.num_ranks, spec.memory_bytes)
        self._start_ranks, self._host, self._orphaned = start_ranks, host, orphaned
        self._hosted: dict[str, Hosted] = {}
        self._inbox: queue.SimpleQueue[Order | Event | None] = queue.SimpleQueue()
        self._state = GroupState(used_bytes=self.memory.used())
        self._step: tuple[str, float] | None = None
        self._turn = 0
        self._next_beat_s = 0.0
        torch.set_num_threads(spec.num_threads)
        self._line = Line(spec, self._take, self._beat)

    def run(self) -> None:
        self._line.start()
        self._line.tell(Up(os.getpid()))
        self._tell_state()
        try:
            while self._obey_all():
                self._give_up_late()
                self._close_drained()
                ready = [one for one in self._hosted.values() if one.may_step]
                if ready:
                    self._run_step(self._whose_turn(ready))
        finally:
            self._line.close()
            for hosted in self._hosted.values():
                if hosted.engine is not None:
                    hosted.engine.close()

    def end(self) -> None:
        """Let ``run`` return soon; from a signal handler too."""
        self._inbox.put(None)

    # ---- the line's threads ----

    def _take(self, order: Order | None) -> None:
        self._inbox.put(order)
        if order is None:
            timer = threading.Timer(ORPHAN_S, self._orphaned, [1])
            timer.daemon = True
            timer.start()

    def _beat(self) -> GroupState:
        step = self._step
        if step is None:
            return self._state
        seconds = time.monotonic() - step[1]
        return dataclasses.replace(self._state, stepping=step[0], step_s=seconds)

    # ---- orders and events ----

    def _obey_all(self) -> bool:
        """Whatever has come; waits for something where there is nothing to do. False at the end."""
        while True:
            try:
                wait_s = self._patience_s()
                item = self._inbox.get(block=wait_s != 0, timeout=wait_s or None)
            except queue.Empty:
                return True
            if item is None or isinstance(item, Stop):
                return False
            if isinstance(item, Load):
                self._begin_load(item)
            elif isinstance(item, Unload):
                self._begin_unload(item)
            elif isinstance(item, Submit):
                self._submit(item)
            elif isinstance(item, Cancel):
                if item.model in self._hosted:
                    self._hosted[item.model].cancel(item.request_ids)
                self._tell_state()
            else:
                item()
                self._tell_state()

    def _patience_s(self) -> float | None:
        """How long to wait for an order: not at all with work to do, else to the next deadline."""
        if any(one.may_step or self._is_drained(one) for one in self._hosted.values()):
            return 0
        ends = [o.drain_until_s for o in self._hosted.values() if o.drain_until_s is not None]
        return max(min(ends) - time.monotonic(), 0.001) if ends else None

    def _submit(self, order: Submit) -> None:
        hosted = self._hosted.get(order.model)
        try:
            if hosted is None or hosted.engine is None or hosted.is_draining:
                text = f"group {self.spec.group} does not serve model {order.model}"
                self._line.tell(Refused(order.number, "not_hosted", text))
                return
            hosted.add(order.jobs, order.ttft_s, order.tpot_s)
        except QueueFull as error:
            self._line.tell(Refused(order.number, "queue_full", str(error)))
        except ContextTooLong as error:
            numbers = (error.limit, error.prompt, error.wanted)
            self._line.tell(Refused(order.number, "too_long", str(error), numbers))
        except ValueError as error:
            self._line.tell(Refused(order.number, "value", str(error)))
        except Exception as error:  # the engine's own fault: as in a step
            self._line.tell(Refused(order.number, "internal", type(error).__name__))
            assert hosted is not None
            self._tell_deltas(self._contain(hosted))
        else:
            self._line.tell(Done(order.number))

    # ---- loading and unloading ----

    def _begin_load(self, order: Load) -> None:
        there = self._hosted.get(order.replica.model)
        if there is not None:
            status = there.state().status
            text = f"model {order.replica.model} is {status} on this group already"
            self._line.tell(Refused(order.number, "load", text))
            return
        hosted = self._hosted[order.replica.model] = Hosted(order)
        self._tell_state()
        self._in_thread(lambda: self._load(hosted), "load")

    def _load(self, hosted: Hosted) -> None:
        """In a thread of its own, while other models are served."""
        replica, model = hosted.load.replica, hosted.model
        began_s = time.perf_counter()
        try:
            engine, needed = self._make_engine(hosted)
        except Exception as error:
            self.memory.give_back(model)
            log.exception("group %s: model %s does not load", self.spec.group, model)
            first = (str(error).splitlines() or [""])[0]
            known = isinstance(error, ValueError | LoadFailed)
            text = first if known else f"{type(error).__name__}: {first}"
            self._inbox.put(lambda: self._load_failed(hosted, text))
            return
        loaded = Loaded(
            max_model_len=engine.max_model_len,
            vocab_size=engine.vocab_size,
            weight_bytes=engine.runner.weight_bytes,
            device_bytes=needed,
            kv_tokens=(engine.runner.num_blocks - 1) * engine.runner.block_size,
            load_s=time.perf_counter() - began_s,
        )
        log.info("group %s: model %s from %s is loaded", self.spec.group, model, replica.folder)
        self._inbox.put(lambda: self._load_done(hosted, engine, loaded))

    def _make_engine(self, hosted: Hosted) -> tuple[Engine, tuple[int, ...]]:
        spec, replica = self.spec, hosted.load.replica
        if replica.kv_tokens < spec.block_size:
            raise LoadFailed(f"kv_tokens: expected at least a block of {spec.block_size} tokens")
        model = read_config(replica.folder)
        needed = device_bytes(model, spec, replica.kv_tokens)
        self.memory.take(replica.model, needed)
        config = spec.engine_config(kv_bytes(model, spec, replica.kv_tokens), model.max_positions)
        many = spec.num_ranks > 1
        loaded = load(
            replica.folder,
            config,
            start=self._start_ranks if many else None,
            num_threads=spec.num_threads,
            host=self._host if many else None,
        )
        return loaded.engine, needed

    def _load_done(self, hosted: Hosted, engine: Engine, loaded: Loaded) -> None:
        hosted.engine = engine
        self._line.tell(Now(hosted.load.number, loaded))

    def _load_failed(self, hosted: Hosted, text: str) -> None:
        del self._hosted[hosted.model]
        self._line.tell(Refused(hosted.load.number, "load", text))
        for order in hosted.unloads:
            self._line.tell(Done(order.number))

    def _begin_unload(self, order: Unload) -> None:
        hosted = self._hosted.get(order.model)
        if hosted is None:
            text = f"group {self.spec.group} does not host model {order.model}"
            self._line.tell(Refused(order.number, "not_hosted", text))
            return
        hosted.unloads.append(order)
        if order.drain_s is not None:
            hosted.drain_until_s = time.monotonic() + order.drain_s
        self._tell_state()

    def _is_drained(self, hosted: Hosted) -> bool:
        engine = hosted.engine
        idle = engine is not None and not engine.has_work() and not hosted.busy
        return hosted.is_draining and idle and not hosted.closing

    def _give_up_late(self) -> None:
        now_s = time.monotonic()
        for hosted in self._hosted.values():
            is_late = hosted.drain_until_s is not None and hosted.drain_until_s <= now_s
            if is_late and not hosted.busy:
                hosted.drain_until_s = None
                if hosted.engine is not None and hosted.engine.has_work():
                    self._tell_deltas(hosted.abort("the model was unloaded"))

    def _close_drained(self) -> None:
        for hosted in list(self._hosted.values()):
            if self._is_drained(hosted):
                engine, hosted.engine, hosted.closing = hosted.engine, None, True
                assert engine is not None
                engines = [engine]
                del engine
                self._in_thread(lambda hosted=hosted, e=engines: self._close(hosted, e), "close")

    def _close(self, hosted: Hosted, engines: list[Engine]) -> None:
        """In a thread of its own; ``engines`` holds the last reference."""
        try:
            engines.pop().close()
        except Exception:
            log.exception("group %s: closing model %s", self.spec.group, hosted.model)
        gc.collect()  # an engine and its metrics know each other
        if self.spec.device == "cuda":
            torch.cuda.empty_cache()
        self.memory.give_back(hosted.model)
        self._inbox.put(lambda: self._closed(hosted))

    def _closed(self, hosted: Hosted) -> None:
        del self._hosted[hosted.model]
        for order in hosted.unloads:
            self._line.tell(Done(order.number))

    def _in_thread(self, work: Callable[[], None], name: str) -> None:
        threading.Thread(target=work, name=name, daemon=True).start()

    # ---- steps ----

    def _whose_turn(self, ready: list[Hosted]) -> Hosted:
        """As ``blocks.sched.cluster_sim.generation.GroupRun`` decides it."""
        if self.spec.turns == "round":
            return min(ready, key=lambda one: one.turn)
        return min(ready, key=lambda one: (one.due_s() if len(ready) > 1 else 0.0, one.turn))

    def _run_step(self, hosted: Hosted) -> None:
        if self._starts_ranks(hosted):
            return
        self._turn += 1
        hosted.turn = self._turn
        self._step = (hosted.model, time.monotonic())
        try:
            deltas = hosted.step()
        except Exception:  # the engine contains what requests cause; this is its own fault
            deltas = self._contain(hosted)
        finally:
            self._step = None
        self._tell_deltas(deltas)
        self._tell_state(late=hosted.may_step)

    def _starts_ranks(self, hosted: Hosted) -> bool:
        """Where a model's processes are gone, start others while other models are served."""
        assert hosted.engine is not None
        runner = hosted.engine.runner
        if not isinstance(runner, ParallelRunner) or runner.is_running:
            return False
        hosted.busy = True
        self._in_thread(lambda: self._start_again(hosted, runner), "restart")
        return True

    def _start_again(self, hosted: Hosted, runner: ParallelRunner) -> None:
        error = ""
        try:
            runner.start()
        except Exception as caught:
            log.error("group %s: model %s: %s", self.spec.group, hosted.model, caught)
            error = (str(caught).splitlines() or [""])[0]
        self._inbox.put(lambda: self._started_again(hosted, error))

    def _started_again(self, hosted: Hosted, error: str) -> None:
        hosted.busy = False
        if error:
            self._tell_deltas(hosted.abort(error))

    def _contain(self, hosted: Hosted) -> list[Delta]:
        log.exception("group %s: the engine of %s failed", self.spec.group, hosted.model)
        return hosted.abort("internal engine error")

    # ---- telling ----

    def _tell_deltas(self, deltas: list[Delta]) -> None:
        if deltas:
            self._line.tell(Deltas(deltas))

    def _tell_state(self, *, late: bool = False) -> None:
        """How the group is now; ``late`` leaves it out when that was told a moment ago."""
        now_s = time.monotonic()
        if late and now_s < self._next_beat_s:
            return
        models = {name: hosted.state() for name, hosted in self._hosted.items()}
        self._state = GroupState(models, self.memory.used(), self._turn)
        self._line.tell(Beat(self._state))
        took_s = time.monotonic() - now_s
        self._next_beat_s = now_s + max(LEAST_BEAT_S, 20 * took_s)  # at most a twentieth of a core
