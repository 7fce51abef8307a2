"""``PlannedReplica``: the part of a model that a device of a parallel plan holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.sharding import Run
from recipes.model import ModelConfig
from recipes.plan.execute import PlannedModule, PlannedPipeline
from recipes.plan.families.decoder_pieces import decoder_pieces
from recipes.train.config import TrainConfig
from recipes.train.holding import Holding
from recipes.train.joined_matrices import joined_matrices
from recipes.train.planned_holding import PlannedHolding
from recipes.train.replica import Replica, Sequences
from recipes.train.shares import Complete


class PlannedReplica(Replica):
    """A ``Replica`` whose stages are programs of a plan; parameters are named as planned.

    The optimizer has every parameter as its update lies, ``parameters``; where that is a part of
    what the device holds between steps, it is that memory. Where the plan's parameters are narrower
    than float32, it is their float32 copy.

    Invariants, between steps:
        1. What the pipeline holds of a parameter are the values of ``parameters``, of all devices
           together, rounded to the plan's dtype.
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
        self.schedule, self.rank, self.is_traced = pipeline.schedule, pipeline.rank, pipeline.speaks
        self.names = tuple(decoder_pieces(model))
        self.bounds: tuple[int, ...] = (0, config.context_len)
        self.copies: frozenset[str] = frozenset()
        self.losses, self.listener = None, None
        self.parameters: dict[str, nn.Parameter] = {}
        self.holdings: dict[str, Holding] = {}
        for module in pipeline.modules.values():
            for name, part in module.state.parameters.items():
                self._take(module, name, part, device)
        self.joined = joined_matrices(model, self.parameters)
        losing = [m for m in pipeline.modules.values() if _has_loss(m)]
        self.has_say = any(m.program.mesh.ranks[0] == device for m in losing)

    def _take(self, module: PlannedModule, name: str, part: Tensor, device: int) -> None:
        machine, spec = module.machine, module.state.update_spec(name)
        shape = machine.shape(name)
        held = machine.spec(name)
        wide = module.state.moments[name].get("master")
        both = {r: (held.runs(shape, r), spec.runs(shape, r)) for r in spec.mesh.ranks}
        if wide is not None:
            inside = wide
        elif all(
            _covers(*runs) for runs in both.values()
        ):  # so on all devices, or they all move it
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
            reduced[name] = reduced[name].to(parameter.dtype)
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
            for name, part in module.state.parameters.items():
                machine = module.machine
                part.copy_(machine.cut(whole[f"model.{name}"], machine.spec(name)))


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
