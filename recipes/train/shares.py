"""``Shares``: stages whose parameters the replicas share among them (FSDP2)."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from blocks.sharding import Cut, DistributedGroup, whole_parameters
from recipes.train.stage import EMBEDDING, TIED_HEAD, DecoderStage

Complete = Callable[[Mapping[str, Tensor]], None]
"""Sums whole gradients, by name, over the replicas, in place."""


class Shares:
    """Between steps each replica holds a run of the rows of every parameter; in a step, all.

    Invariants, between steps:
        1. ``parameters`` are this process's rows, in the memory the next step gathers from.
        2. ``rows`` says which rows they are.
    """

    def __init__(
        self, stages: Iterable[DecoderStage], process_group: Any, device: str = "cpu"
    ) -> None:
        """
        Args:
            stages: with their values; wrapped in ``fully_shard``.
            process_group: of the replicas.
            device: where the stages are, "cpu" or "cuda".
        """
        self.stages = list(stages)
        self.group = DistributedGroup(process_group)
        mesh = DeviceMesh.from_group(process_group, device, mesh_dim_names=("replicas",))
        self._sharded: dict[str, nn.Parameter] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.rows: dict[str, Cut] = {}
        for stage in self.stages:
            fully_shard(stage, mesh=mesh)
        for name, parameter in self.named():
            assert isinstance(parameter, DTensor), "fully_shard covers all parameters of a stage"
            self._sharded[name] = parameter
            self.parameters[name] = nn.Parameter(parameter.to_local().detach())
            self.rows[name] = Cut.even(0, parameter.shape[0], self.group.size)

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The stages' parameters as they are now, by their names in the whole model.

        A tied head goes by the embedding's name where that is not here, and not at all else.
        """
        here = {name for stage in self.stages for name, _ in stage.named_parameters()}
        for stage in self.stages:
            for name, parameter in stage.named_parameters():
                if name != TIED_HEAD or not stage.tied:
                    yield name, parameter
                elif EMBEDDING not in here:
                    yield EMBEDDING, parameter

    @contextlib.contextmanager
    def whole(self, complete: Complete | None = None) -> Iterator[None]:
        """All parameters whole inside; on the way out, gradients go to ``parameters``.

        Args:
            complete: is given the whole gradients, stage by stage.
        """
        self._follow_ties()
        with contextlib.ExitStack() as stack:
            for stage in self.stages:
                reduce = None
                if complete is not None:
                    reduce = functools.partial(self._reduce, stage, complete)
                stack.enter_context(whole_parameters(stage, reduce=reduce))
            yield
        for name, parameter in self.parameters.items():
            grad: Any = self._sharded[name].grad
            parameter.grad = None if grad is None else grad.to_local()
            self._sharded[name].grad = None

    def _reduce(self, stage: DecoderStage, complete: Complete, grads: Mapping[str, Tensor]) -> None:
        renamed = {TIED_HEAD: EMBEDDING} if stage.tied else {}
        complete({renamed.get(name, name): grad for name, grad in grads.items()})

    @torch.no_grad()
    def _follow_ties(self) -> None:
        """A tied head takes the embedding's values where both are here."""
        for stage in self.stages:
            if stage.tied and EMBEDDING in self.parameters and stage.head is not None:
                head: Any = stage.head.weight
                rows = head.to_local()
                if rows.data_ptr() != self.parameters[EMBEDDING].data_ptr():
                    rows.copy_(self.parameters[EMBEDDING])
