"""``PlannedReplica``: the part of a model that a device of a parallel plan holds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.sharding import Replicate, Run, ShardingSpec
from recipes.model import Decoder, ModelConfig
from recipes.plan.execute import SGD, PlannedJob, PlannedModule, PlannedPipeline, job_of
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.families.decoder_pieces import decoder_pieces
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.trace import trace
from recipes.train.checkpoint import Box, Part
from recipes.train.config import TrainConfig
from recipes.train.holding import Holding
from recipes.train.model import first_weights
from recipes.train.replica import Replica, Sequences
from recipes.train.shares import Complete


class PlannedReplica(Replica):
    """A ``Replica`` whose stages are programs of a plan; parameters are named as planned.

    The optimizer has every parameter as its update lies, ``parameters``; where that is a part of
    what the device holds between steps, it is that memory.

    Invariants, between steps:
        1. What the pipeline holds of a parameter are the values of ``parameters``, of all devices
           together.
        2. Those of the pipeline.
    """

    def __init__(
        self, config: TrainConfig, model: ModelConfig, pipeline: PlannedPipeline, device: int
    ) -> None:
        """
        Args:
            pipeline: of ``job_for``, this device's share.
        """
        # A replica's own stages are not made: the pipeline has the plan's.
        self.config, self.model, self.pipeline = config, model, pipeline
        self.stages = {}
        self.names = tuple(decoder_pieces(model))
        self.bounds: tuple[int, ...] = (0, config.context_len)
        self.copies: frozenset[str] = frozenset()
        self.losses, self.listener = None, None
        self.parameters: dict[str, nn.Parameter] = {}
        self.holdings: dict[str, Holding] = {}
        for module in pipeline.modules.values():
            for name, part in module.parameters.items():
                self._take(module, name, part, device)
        losing = [m for m in pipeline.modules.values() if _has_loss(m)]
        self.has_say = any(m.program.mesh.ranks[0] == device for m in losing)

    def _take(self, module: PlannedModule, name: str, part: Tensor, device: int) -> None:
        machine, spec = module.machine, module.update_spec(name)
        shape = machine.shape(name)
        held = machine.spec(name)
        both = {r: (held.runs(shape, r), spec.runs(shape, r)) for r in spec.mesh.ranks}
        if all(_covers(*runs) for runs in both.values()):  # so on all devices, or they all move it
            inside = _narrowed(part, *both[device])
            inside = inside if inside.is_contiguous() else inside.clone()
        else:
            inside = machine.moved(part, shape, held, spec).clone()
        self.parameters[name] = nn.Parameter(inside)
        self.holdings[name] = PlannedHolding(module=module, shape=shape, spec=spec, device=device)

    def sequences(self, batch: Any) -> list[dict[str, Tensor]]:
        size = self.config.microbatch
        assert size is not None, "the plan says"
        pairs = zip(batch.inputs.split(size), batch.labels.split(size), strict=True)
        return [{"inputs": inputs, "labels": labels} for inputs, labels in pairs]

    def gradients(
        self,
        sequences: Sequences,
        *,
        lanes: Sequence[int],
        scale: float,
        step: int,
        first: int,
        complete: Complete,
    ) -> Tensor:
        """Leave the gradients of ``scale`` times the sum of all losses in ``.grad``, as the plan's
        update takes them; see ``Replica.gradients``. Lanes mean nothing here."""
        total = self.pipeline.accumulate(sequences, loss_scale=scale)
        reduced = self.pipeline.reduce()
        for name, parameter in self.parameters.items():
            parameter.grad = reduced[name]
        complete(reduced)
        losses = torch.zeros(len(sequences), 1, dtype=torch.float64)
        if total is not None and self.has_say:
            losses[0, 0] = float(total) / scale
        return losses

    def publish(self) -> None:
        """What the optimizer made of ``parameters`` goes to all devices that use it."""
        for parameter in self.parameters.values():
            parameter.grad = None
        self.pipeline.update(lambda name: self.parameters[name].data)

    def drop(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        self.pipeline.drop()

    def loss_sums(self, sequences: Sequences) -> Tensor:
        totals = torch.zeros(len(sequences), dtype=torch.float64)
        found = self.pipeline.losses(sequences) if sequences else None
        if found is not None and self.has_say:
            totals += torch.tensor(found, dtype=torch.float64)
        return totals

    @torch.no_grad()
    def refresh(self, whole: Mapping[str, Tensor]) -> None:
        """Take over all that is held of a checkpoint's parameters, the optimizer's part or more."""
        for module in self.pipeline.modules.values():
            for name, part in module.parameters.items():
                machine = module.machine
                part.copy_(machine.cut(whole[f"model.{name}"], machine.spec(name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedHolding(Holding):
    """What a device holds of a parameter and its moments: a part as its update lies.

    module: whose it is. shape: of the whole. spec: of the update. device: this one.
    """

    module: PlannedModule
    shape: tuple[int, ...]
    spec: ShardingSpec
    device: int

    def whole(self, held: Tensor) -> Tensor:
        """The whole tensor, on every device of the stage: all of them call this together."""
        replicated = ShardingSpec.replicated(self.spec.mesh)
        return self.module.machine.moved(held, self.shape, self.spec, replicated)

    def of(self, whole: Tensor) -> Tensor:
        if not whole.dim():
            return whole
        return self.module.machine.cut(whole, self.spec).contiguous()

    def square(self, part: Tensor) -> float:
        """Sum of squares, in float64, where no device before this one holds the same."""
        mesh = self.spec.mesh
        for axis, placement in zip(mesh.axes, self.spec.placements, strict=True):
            if isinstance(placement, Replicate) and mesh.coordinate(self.device, axis):
                return 0.0
        return torch.linalg.vector_norm(part, dtype=torch.float64).item() ** 2

    def in_checkpoint(self, held: Tensor) -> Tensor:
        if not held.dim():
            return held
        offsets = tuple(run.start for run in self.spec.runs(self.shape, self.device))
        boxes = [Box(offsets, held)] if held.numel() else []
        return Part.of(self.shape, held.dtype, boxes)


def _covers(held: Sequence[Run], wanted: Sequence[Run]) -> bool:
    """Whether the runs held have those wanted in them."""
    pairs = zip(held, wanted, strict=True)
    return all(have.start <= want.start and want.stop <= have.stop for have, want in pairs)


def _narrowed(part: Tensor, held: Sequence[Run], wanted: Sequence[Run]) -> Tensor:
    """The view of the runs wanted in what holds more."""
    for dim, (have, want) in enumerate(zip(held, wanted, strict=True)):
        part = part.narrow(dim, want.start - have.start, want.size)
    return part


def _has_loss(module: PlannedModule) -> bool:
    return any(node.op == "loss" for node in module.program.graph.nodes)


class FirstWeights(Mapping[str, Tensor]):
    """The weights a run begins with, by planned name, made when asked for."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self._model, self._seed, self._pieces = model, seed, decoder_pieces(model)
        whole = Decoder(model, device="meta")
        self._whole = {name: tuple(one.shape) for name, one in whole.named_parameters()}
        with torch.device("meta"):
            split = TrainedDecoder(model)
        self._rows = {name: one.shape[0] for name, one in split.named_parameters()}
        self._buffers = dict(Decoder(model).named_buffers())

    def __getitem__(self, name: str) -> Tensor:
        if name in self._buffers:
            return self._buffers[name]
        piece = self._pieces[name]
        whole = torch.empty(self._whole[piece.name])
        first_weights(piece.name, whole, self._model, self._seed)
        return whole.narrow(0, piece.first_row, self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter((*self._pieces, *self._buffers))

    def __len__(self) -> int:
        return len(self._pieces) + len(self._buffers)


def job_for(config: TrainConfig, model: ModelConfig, plan: ParallelPlan) -> PlannedJob:
    """All that the devices of a run have in common.

    Raises:
        ValueError: the plan of another model.
    """
    rows = config.microbatch
    assert rows is not None, "the plan says"
    tokens = torch.empty(rows, config.context_len, dtype=torch.int64, device="meta")
    traced = trace(lambda: TrainedDecoder(model), (), {"inputs": tokens, "labels": tokens})
    return job_of(plan, traced, FirstWeights(model, config.seed), optimizer=SGD())
