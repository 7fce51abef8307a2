"""``Place``: this process among those of the run, and what it speaks to them through."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from blocks._checks import check
from blocks.pipeline import (
    DistributedTransport,
    Schedule,
    TraceEvent,
    Transport,
    channels_of,
    in_process_transports,
)
from blocks.pipeline.ties import Tie
from blocks.sharding import DistributedGroup, Group, axis_groups, make_device_mesh, run_local
from recipes.train.checkpoint import GroupRanks, OneRank, Ranks
from recipes.train.layout import Layout, Position
from recipes.train.rendezvous import join_world

if TYPE_CHECKING:  # the compiler behind it takes longer to import than the rest of a run
    from recipes.plan.execute import PlannedJob, PlannedPipeline

REPORT_AFTER_S = 5.0
"""Seconds after which a tensor-parallel rank that waits for the others says so."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One process of a layout. ``Place()`` is a run of one process, without any group.

    pipeline: the ranks of this replica's pipeline; replicas: those with the same parameters;
    files: all ranks, for checkpoints alone, which are written while steps go on; words: all ranks,
    for what they tell one another; tensor: those that share the layers held here.
    """

    layout: Layout = dataclasses.field(default_factory=Layout)
    rank: int = 0
    pipeline: Any = None
    replicas: Any = None
    files: Any = None
    words: Any = None
    tensor: Group | None = None
    device: str = "cpu"
    _closing: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @classmethod
    @contextlib.contextmanager
    def join(cls, layout: Layout, device: str = "cpu") -> Iterator["Place"]:
        """This process's place, from the environment torchrun makes; every process calls it.

        Args:
            device: "cpu", or "cuda": every process has an accelerator to itself.

        Raises:
            ValueError: there are more or fewer processes than the layout has ranks.
        """
        if layout.num_ranks == 1 and not dist.is_initialized():
            yield cls(device=device)
            return
        begun = not dist.is_initialized()
        if begun:
            join_world(device)
        try:
            got = dist.get_world_size()
            check(got == layout.num_ranks, "processes", f"dp * pp * tp = {layout.num_ranks}", got)
            place = cls(layout, dist.get_rank(), *_groups(layout, dist.get_rank()), device)
            with place._closing:
                yield place
        finally:
            if begun:
                dist.destroy_process_group()

    @property
    def position(self) -> Position:
        return self.layout.position(self.rank)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes logs."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.layout.num_ranks == 1

    def transport(self, schedule: Schedule, ties: Iterable[Tie] = ()) -> Transport:
        """A new one between the ranks of this pipeline; closed when the place is left."""
        if self.layout.pp == 1:
            return in_process_transports(1)[0]
        channels = channels_of(schedule, ties)
        made = DistributedTransport(self.pipeline, device=self.device, channels=channels)
        return self._closing.enter_context(made)

    def planned(
        self, job: "PlannedJob", on_event: Callable[[TraceEvent], None] | None = None
    ) -> "PlannedPipeline":
        """This device's share of a planned job; what it talks through is closed with the place.

        Args:
            on_event: told of every action of the schedule that was done.
        """
        here: dict[str, Any] = {"where": self.device, "on_event": on_event}
        if self.alone:
            (mesh,) = job.meshes
            (groups,) = run_local(mesh, lambda rank, groups: groups)
            return job.pipeline(self.rank, groups, in_process_transports(1)[0], **here)
        own = None
        for mesh in job.meshes:  # all processes make all groups, in one order
            made = make_device_mesh(mesh, self.device)
            own = made if self.rank in mesh.ranks else own
        assert own is not None, "a process for each of the plan's devices"
        channels = job.routes.channels
        device = self.device if channels else "cpu"  # statuses alone go by the store
        made = DistributedTransport(device=device, channels=channels, name="planned")
        wire = self._closing.enter_context(made)
        return job.pipeline(self.rank, axis_groups(own), wire, **here)

    def ranks(self) -> Ranks:
        """Those that write and read a checkpoint together."""
        return OneRank() if self.alone else GroupRanks(self.files)

    def collect(self, numbers: Tensor) -> Tensor:
        """Fill in what others know: every entry is not zero on one process at most.

        Adding zeros rounds nothing, so the result is the same bits in any layout.
        """
        if not self.alone:
            dist.all_reduce(numbers, group=self.words)
        return numbers

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        if self.alone:
            return number
        held = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(held, op=dist.ReduceOp.MAX, group=self.words)
        return held.item()

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.alone:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=self.words)
        return box[0]

    def wait_for_all(self) -> None:
        if not self.alone:
            dist.barrier(group=self.words)


def _groups(layout: Layout, rank: int) -> tuple[Any, Any, Any, Any, Group | None]:
    """Groups: pipeline, replicas, files, words and tensor; every process makes every group."""
    here = layout.position(rank)
    pipelines = {
        (dp, tp): dist.new_group(list(layout.pipeline(dp, tp)))
        for dp in range(layout.dp)
        for tp in range(layout.tp)
    }
    replicas = {
        (pp, tp): dist.new_group(list(layout.replicas(pp, tp)))
        for pp in range(layout.pp)
        for tp in range(layout.tp)
    }
    files, words = (dist.new_group(backend="gloo") for _ in range(2))
    tensor = None
    if layout.tp > 1:
        groups: dict[tuple[int, int], Any] = {
            (dp, pp): dist.new_group(list(layout.tensor(dp, pp)))
            for dp in range(layout.dp)
            for pp in range(layout.pp)
        }
        tensor = DistributedGroup(groups[here.dp, here.pp], report_after_s=REPORT_AFTER_S)
    return pipelines[here.dp, here.tp], replicas[here.pp, here.tp], files, words, tensor
