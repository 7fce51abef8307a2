"""``LocalCall``: what an operation has to know to run on one rank's parts."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import torch

from blocks.sharding import (
    Group,
    Mesh,
    OpNode,
    Placement,
    Run,
    ShardingSpec,
    Strategy,
    TensorValue,
)

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class LocalCall:
    """One operation on one rank.

    node, strategy: what is computed, and how it is spread.
    inputs, outputs: the values it reads and makes, as they are whole.
    mesh, rank, groups: where; for every axis of the mesh the group the rank is in.
    device: where the rank computes.
    key: (seed, step, microbatch, node): what random numbers are drawn from.
    loss_scale: the gradient of the loss.
    """

    node: OpNode
    strategy: Strategy
    inputs: tuple[TensorValue, ...]
    outputs: tuple[TensorValue, ...]
    mesh: Mesh
    rank: int
    groups: Mapping[str, Group]
    device: torch.device = CPU
    key: tuple[int | str, ...] = ()
    loss_scale: float = 1.0

    def of_microbatch(self, key: tuple[int | str, ...], loss_scale: float) -> "LocalCall":
        """The same for another microbatch."""
        return dataclasses.replace(self, key=key, loss_scale=loss_scale)

    def input_runs(self, at: int) -> tuple[Run, ...]:
        """The part of an input that the rank holds, dim by dim."""
        return runs_of(self.mesh, self.strategy.inputs[at], self.inputs[at].shape, self.rank)

    def output_runs(self, at: int) -> tuple[Run, ...]:
        """The part of an output that the rank makes, dim by dim."""
        return runs_of(self.mesh, self.strategy.outputs[at], self.outputs[at].shape, self.rank)

    def output_shape(self, at: int) -> list[int]:
        """Sizes of the part of an output that the rank makes."""
        return [run.size for run in self.output_runs(at)]

    def candidates(self) -> list[Group]:
        """The groups whose ranks each hold candidates for a maximum."""
        return [
            self.groups[axis]
            for axis, choice in zip(self.mesh.axes, self.strategy.choices, strict=True)
            if choice >= 0 and self.node.rule.factors[choice].kind == "max"
        ]

    def generator(self, device: torch.device) -> torch.Generator:
        """Random numbers by content: the same on all ranks, whatever the strategy."""
        digest = hashlib.blake2b(repr(self.key).encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@functools.lru_cache(maxsize=65536)
def runs_of(
    mesh: Mesh, placements: tuple[Placement, ...], shape: tuple[int, ...], rank: int
) -> tuple[Run, ...]:
    """The part of every dim that a rank holds."""
    return ShardingSpec(mesh, placements).runs(shape, rank)
