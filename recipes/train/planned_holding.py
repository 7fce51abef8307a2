"""``PlannedHolding``: which part of a parameter a device of a parallel plan has."""

import dataclasses

import torch
from torch import Tensor

from blocks.sharding import Replicate, ShardingSpec
from recipes.plan.execute import PlannedModule
from recipes.train.checkpoint import Box, Part
from recipes.train.holding import Holding


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
