"""``DistributedTransport``: the ranks of a pipeline as processes of a torch.distributed group."""

import atexit
import contextlib
import datetime
import json
import threading
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blocks._checks import check, fail
from blocks.pipeline.action import Action
from blocks.pipeline.pending import OnStream, OnThread, Waiter
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.ties import Tie
from blocks.pipeline.transport import Handle, TensorSpec

PUBLISH_EVERY_S = 0.5
"""How often a rank looks whether its status changed and tells the store."""


class DistributedTransport:
    """Point-to-point messages of a process group; statuses through its store.

    On the CPU, over gloo, threads wait for messages, one a channel, so that the rank's own thread
    can be interrupted and can report while it waits. On an accelerator, over NCCL, every channel is
    a communicator of its own with a stream of its own, as one communicator would do sends and
    receives one after another.

    Close it, or use it as a context, before the process group is destroyed.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | str = "cpu",
        channels: Iterable[tuple[int, int]] = (),
        store: dist.Store | None = None,
        name: str = "pipeline",
    ) -> None:
        """
        Args:
            group: the ranks of one pipeline, in order; default: all processes.
            device: where received tensors go.
            channels: NCCL only: pairs (from, to) of ranks of the group that will exchange
                tensors, the same on all ranks; see ``channels_of``.
            store: for statuses; default: that of the default group.
            name: keeps pipelines apart in the store. Ranks of the group are added to it.

        Raises:
            ValueError: NCCL without channels.
        """
        group = group if group is not None else dist.group.WORLD
        hint = "call torch.distributed.init_process_group first"
        if group is None:
            raise fail("group", "a process group", "torch.distributed not initialised", hint)
        self._group, self._device = group, torch.device(device)
        self._ranks = dist.get_process_group_ranks(group)
        self._rank = dist.get_rank(group)
        store = store if store is not None else dist.distributed_c10d._get_default_store()
        members = "-".join(map(str, self._ranks))
        self._store = dist.PrefixStore(f"{name}/{members}", store)
        self._streams = _speaks_nccl(group, self._device)
        self._groups: dict[tuple[int, int], Any] = {}
        if self._streams:
            check(bool(channels), "channels", "the pairs of ranks that exchange tensors", "none")
            for pair in sorted(channels):
                if self._rank in pair:
                    self._groups[pair] = dist.new_group(
                        [self._ranks[rank] for rank in pair], use_local_synchronization=True
                    )
        self._waiters: dict[tuple[int, int], Waiter] = {}
        self._status: tuple[str, float] = ("start", time.time())
        self._closed = threading.Event()
        self._publisher = threading.Thread(target=self._publish, daemon=True)
        self._publisher.start()
        atexit.register(self.close)  # threads that still wait would end the process badly

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return len(self._ranks)

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> Handle:
        channel = (self._rank, target_rank)
        tensor = tensor.contiguous()
        group = self._groups.get(channel, self._group)
        return self._begin(dist.isend, tensor, self._ranks[target_rank], group, channel)

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> Handle:
        channel = (source_rank, self._rank)
        tensor = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        group = self._groups.get(channel, self._group)
        return self._begin(dist.irecv, tensor, self._ranks[source_rank], group, channel)

    def _begin(
        self, call: Any, tensor: Tensor, other: int, group: Any, channel: tuple[int, int]
    ) -> Handle:
        try:
            work = call(tensor, other, group=group)
        except RuntimeError as error:  # the other process is gone
            handle = OnThread(None, tensor)
            handle.fail(error)
            return handle
        if self._streams:
            return OnStream(work, tensor)
        if channel not in self._waiters:
            self._waiters[channel] = Waiter()
        return self._waiters[channel].add(work, tensor)

    def post_status(self, text: str) -> None:
        self._status = (text, time.time())

    def status(self, rank: int) -> str:
        try:
            if not self._store.check([f"status/{rank}"]):
                return "an unknown action"
            text, since = json.loads(self._store.get(f"status/{rank}"))
        except RuntimeError as error:
            return f"an unknown action ({error})"
        return f"{text} since {max(0.0, time.time() - since):.1f} s"

    def give_up(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store's process is gone: the others notice
            self._store.set("gave_up", reason)

    def given_up(self) -> str | None:
        try:
            return self._store.get("gave_up").decode() if self._store.check(["gave_up"]) else None
        except RuntimeError as error:
            return f"the store does not answer: {error}"

    def _publish(self) -> None:
        told = None
        while not self._closed.wait(PUBLISH_EVERY_S):
            status = self._status
            if status is not told:
                try:
                    self._store.set(f"status/{self._rank}", json.dumps(status))
                except RuntimeError:
                    return  # the store's process is gone
                told = status

    def close(self) -> None:
        """Stop the threads. With messages under way, which is after a failure only, the group's
        connections are closed: gloo knows no other end for them."""
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        self._publisher.join()
        if any(waiter.busy for waiter in self._waiters.values()):
            self._break_connections()
        for waiter in self._waiters.values():
            waiter.close()

    def _break_connections(self) -> None:
        """A receive that runs into its time limit closes all connections of its group."""
        other = next(rank for rank in self._ranks if rank != self._ranks[self._rank])
        with contextlib.suppress(RuntimeError):
            work = dist.irecv(torch.empty(1), other, group=self._group)
            assert work is not None
            work.wait(datetime.timedelta(milliseconds=1))

    def __enter__(self) -> "DistributedTransport":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.give_up(f"rank {self._rank} failed: {error!r}")
        self.close()


def _speaks_nccl(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether tensors on the device go over NCCL: ``nccl`` or ``cpu:gloo,cuda:nccl``."""
    return device.type == "cuda" and "nccl" in dist.get_backend_config(group)


def channels_of(schedule: Schedule, ties: Iterable[Tie] = ()) -> list[tuple[int, int]]:
    """Pairs (from, to) of ranks between which a schedule's tensors and their gradients move.

    >>> channels_of(Schedule("three stages", (0, 1, 0), (1,), ((), ())))
    [(0, 1), (1, 0)]
    """
    edges = [*schedule.edges, *((min(tie), stage) for tie in ties for stage in tie)]
    pairs = {(schedule.placement[a], schedule.placement[b]) for a, b in edges}
    return sorted({(a, b) for pair in pairs for a, b in (pair, pair[::-1]) if a != b})
