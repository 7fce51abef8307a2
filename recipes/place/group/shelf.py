"""``Shelf``: the models of a group, as they come and go."""

import gc
import logging
import threading
import time
from collections.abc import Callable

import torch

from recipes.model import read_config
from recipes.place.group.faults import LoadFailed
from recipes.place.group.footprint import device_bytes, kv_bytes
from recipes.place.group.hosted import Hosted
from recipes.place.group.memory import DeviceMemory
from recipes.place.group.messages import Done, Host, Now, Refused, Report, Unload
from recipes.place.group.replica import Loaded, Replica
from recipes.place.group.spec import GroupSpec
from recipes.serve.engine import Engine
from recipes.serve.loading import load
from recipes.serve.outputs import Delta
from recipes.serve.parallel import Start

log = logging.getLogger("recipes.place")

Event = Callable[[], None]


class Shelf:
    """Models from the order to host them to the end of their memory.

    Loading and closing takes threads of their own, in which other models are served; what comes of
    it is handed back as an event, to be called by the one thread that touches engines.

    Invariants:
        1. Every order is answered once.
        2. Memory is taken before anything is loaded, and given back after it was freed.

    Args:
        start_ranks, host: see ``run_group``.
        post: takes events. answer: takes reports, behind a state that shows what they say.
    """

    def __init__(
        self,
        spec: GroupSpec,
        start_ranks: Start,
        host: str | None,
        post: Callable[[Event], object],
        answer: Callable[[list[Report]], object],
    ) -> None:
        self.memory = DeviceMemory(spec.num_ranks, spec.memory_bytes)
        self.models: dict[str, Hosted] = {}
        self._spec, self._start_ranks, self._host = spec, start_ranks, host
        self._post, self._answer = post, answer

    def load(self, order: Host) -> None:
        """Begin to load a model."""
        there = self.models.get(order.replica.model)
        if there is not None:
            text = f"model {there.model} is {there.state().status} on this group already"
            self._answer([Refused(order.number, "load", text)])
            return
        hosted = self.models[order.replica.model] = Hosted(order)
        self._answer([])
        in_thread(lambda: self._load(hosted), "load")

    def unload(self, order: Unload) -> None:
        """Take no more work for a model; it goes once there is none."""
        hosted = self.models.get(order.model)
        if hosted is None:
            text = f"group {self._spec.group} does not host model {order.model}"
            self._answer([Refused(order.number, "not_hosted", text)])
            return
        hosted.unloads.append(order)
        if order.drain_s is not None:
            hosted.drain_until_s = time.monotonic() + order.drain_s
        self._answer([])

    def next_deadline_s(self) -> float | None:
        """When the next draining model's time is over, of those that can be given up then."""
        ends = [one.drain_until_s for one in self.models.values() if not one.busy]
        return min((end for end in ends if end is not None), default=None)

    def give_up_late(self) -> list[Delta]:
        """End what still runs of models whose time is over."""
        deltas: list[Delta] = []
        for hosted in self.models.values():
            until_s = hosted.drain_until_s
            if until_s is not None and until_s <= time.monotonic() and not hosted.busy:
                hosted.drain_until_s = None
                if hosted.engine is not None and hosted.engine.has_work():
                    deltas += hosted.abort("the model was unloaded", lost=True)
        return deltas

    def close_drained(self) -> None:
        """Begin to close the models that have answered all they took."""
        for hosted in self.models.values():
            if hosted.is_drained:
                assert hosted.engine is not None
                engines = [hosted.engine]
                hosted.engine, hosted.closing = None, True
                in_thread(lambda hosted=hosted, last=engines: self._close(hosted, last), "close")

    def close(self) -> None:
        """End the processes of all models."""
        for hosted in self.models.values():
            if hosted.engine is not None:
                hosted.engine.close()

    # ---- in threads of their own ----

    def _load(self, hosted: Hosted) -> None:
        replica, began_s = hosted.order.replica, time.perf_counter()
        try:
            engine, needed = self._make_engine(replica)
        except Exception as error:
            self.memory.give_back(replica.model)
            log.exception("group %s: model %s does not load", self._spec.group, replica.model)
            text = why(error)
            self._post(lambda: self._failed(hosted, text))
            return
        loaded = Loaded(
            max_model_len=engine.max_model_len,
            vocab_size=engine.vocab_size,
            weight_bytes=engine.runner.weight_bytes,
            device_bytes=needed,
            kv_tokens=(engine.runner.num_blocks - 1) * engine.runner.block_size,
            load_s=time.perf_counter() - began_s,
        )
        log.info("group %s: model %s is loaded", self._spec.group, replica.model)
        engines = [engine]
        del engine  # this thread may outlive it
        self._post(lambda: self._loaded(hosted, engines.pop(), loaded))

    def _make_engine(self, replica: Replica) -> tuple[Engine, tuple[int, ...]]:
        spec = self._spec
        if replica.kv_tokens < spec.block_size:
            raise LoadFailed(
                f"kv_tokens: expected at least a block of {spec.block_size} tokens, "
                f"got {replica.kv_tokens}"
            )
        model = read_config(replica.folder)
        needed = device_bytes(model, spec, replica.kv_tokens)
        self.memory.take(replica.model, needed, replica.activation_bytes)
        many = spec.num_ranks > 1
        loaded = load(
            replica.folder,
            spec.engine_config(kv_bytes(model, spec, replica.kv_tokens), model.max_positions),
            start=self._start_ranks if many else None,
            num_threads=spec.num_threads,
            host=self._host if many else None,
        )
        return loaded.engine, needed

    def _close(self, hosted: Hosted, engines: list[Engine]) -> None:
        """``engines`` holds the last reference."""
        try:
            engines.pop().close()
        except Exception:
            log.exception("group %s: closing model %s", self._spec.group, hosted.model)
        gc.collect()  # an engine and its metrics know each other
        if self._spec.device == "cuda":
            torch.cuda.empty_cache()
        self.memory.give_back(hosted.model)
        self._post(lambda: self._closed(hosted))

    # ---- events ----

    def _loaded(self, hosted: Hosted, engine: Engine, loaded: Loaded) -> None:
        hosted.serve(engine)
        self._answer([Now(hosted.order.number, loaded)])

    def _failed(self, hosted: Hosted, text: str) -> None:
        del self.models[hosted.model]
        refused = Refused(hosted.order.number, "load", text)
        self._answer([refused, *(Done(order.number) for order in hosted.unloads)])

    def _closed(self, hosted: Hosted) -> None:
        del self.models[hosted.model]
        self._answer([Done(order.number) for order in hosted.unloads])


def in_thread(work: Event, name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def why(error: Exception) -> str:
    """An error in a line; the house's own say enough without their type."""
    first = (str(error).splitlines() or [""])[0]
    known = isinstance(error, ValueError | LoadFailed)
    return first if known and first else f"{type(error).__name__}: {first}"
