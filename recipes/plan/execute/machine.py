"""``Machine``: runs the instructions of a program on one rank's tensors."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blocks._checks import check
from blocks.sharding import Group, Program, ShardingSpec, first_name, plan_reshard, prepare_step
from blocks.sharding.program import Compute, Free, Instruction, Replace, Reshard
from recipes.plan.execute.exchange import run_steps, to_whole
from recipes.plan.execute.local_call import LocalCall

Tensors = MutableMapping[str, Tensor]
Update = Callable[[LocalCall, Tensor, Tensor], Tensor]
"""(call, the parameter, its gradient), all as the update runs, to the new parameter."""


class Operations(Protocol):
    """What the nodes of a graph compute."""

    def run(self, call: LocalCall, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """A rank's parts of a node's outputs, from its parts of the inputs."""
        ...


class Machine:
    """One rank's part of a program: decides nothing, does what the instructions say.

    Invariants:
        1. Only names that the program has not freed are held.
        2. Every tensor has the shape that its placements give the rank.
    """

    def __init__(
        self,
        program: Program,
        rank: int,
        groups: Mapping[str, Group],
        operations: Operations,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            groups: for every axis of the mesh the group the rank is in.
            seed: of random numbers that operations draw.
            device: where the rank computes.
        """
        for axis, size in zip(program.mesh.axes, program.mesh.sizes, strict=True):
            check(groups[axis].size == size, f"group of {axis}", f"{size} ranks", groups[axis].size)
        self.program, self.rank, self.groups = program, rank, groups
        self.device = torch.device(device)
        self._operations, self._seed = operations, seed
        self._calls: dict[int, LocalCall] = {}
        self._steps: dict[str, list[tuple[Callable[[Tensor, Group], Tensor], Group]]] = {}

    def spec(self, name: str) -> ShardingSpec:
        """How a local name lies."""
        return ShardingSpec(self.program.mesh, self.program.placements_of[name])

    def local_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what the rank holds under a local name."""
        return self.spec(name).local_shape(self.shape(name), self.rank)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor that a local name stands for."""
        return self.program.graph.values[self.program.value_of[name]].shape

    def local_part(self, name: str, whole: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The rank's part of a tensor that is at hand as a whole: memory of its own.

        Args:
            dtype: of the part; default that of ``whole``.
        """
        check(tuple(whole.shape) == self.shape(name), name, self.shape(name), tuple(whole.shape))
        part = self.cut(whole, self.spec(name))
        made = torch.empty(part.shape, dtype=dtype or part.dtype, device=self.device)
        return made.copy_(part)

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor of a local name, from the rank's part; a call of all ranks."""
        return to_whole(part, self.shape(name), self.spec(name), self.rank, self.groups)

    def cut(self, whole: Tensor, spec: ShardingSpec) -> Tensor:
        """The rank's part of a whole tensor under ``spec``: a view."""
        for dim, run in enumerate(spec.runs(whole.shape, self.rank)):
            whole = whole.narrow(dim, run.start, run.size)
        return whole

    def moved(
        self, part: Tensor, shape: tuple[int, ...], source: ShardingSpec, target: ShardingSpec
    ) -> Tensor:
        """The rank's part of a tensor of ``shape`` under another sharding."""
        steps = plan_reshard(source, target)
        return run_steps(part, shape, steps, self.rank, self.groups)

    @torch.no_grad()
    def run(
        self,
        instructions: Sequence[Instruction],
        held: Tensors,
        *,
        key: tuple[int, ...] = (),
        loss_scale: float = 1.0,
        update: Update | None = None,
    ) -> None:
        """Follow instructions.

        Args:
            held: tensors by local name; what is made joins them, what is freed leaves.
            key: (step, microbatch), for random numbers.
            loss_scale: the gradient of the loss.
            update: what update nodes do.
        """
        for instruction in instructions:
            if isinstance(instruction, Compute):
                self._compute(instruction, held, key, loss_scale, update)
            elif isinstance(instruction, Reshard):
                self._reshard(instruction, held)
            elif isinstance(instruction, Free):
                del held[instruction.name]
            else:
                self._replace(instruction, held)

    def _compute(
        self,
        instruction: Compute,
        held: Tensors,
        key: tuple[int, ...],
        loss_scale: float,
        update: Update | None,
    ) -> None:
        node = self.program.graph.nodes[instruction.node]
        inputs = [held[name] for name in instruction.inputs]
        if node.role == "accumulate":
            held[instruction.outputs[0]].add_(inputs[0])
            return
        call = self._call(instruction.node, key, loss_scale)
        if node.role == "update":
            assert update is not None
            outputs: Sequence[Tensor] = (update(call, inputs[0], inputs[1]),)
        else:
            outputs = self._operations.run(call, inputs)
        assert len(outputs) == len(instruction.outputs), node.name
        for name, output in zip(instruction.outputs, outputs, strict=True):
            held[name] = output

    def _reshard(self, instruction: Reshard, held: Tensors) -> None:
        steps = self._steps.get(instruction.result)
        if steps is None:
            shape = self.program.graph.values[instruction.value].shape
            steps = [
                (prepare_step(shape, step, self.rank), self.groups[step.axis])
                for step in instruction.steps
            ]
            self._steps[instruction.result] = steps
        x = held[instruction.source]  # in no name that outlives it: memory goes when freed
        for step, group in steps:
            x = step(x, group)
        held[instruction.result] = x

    def _replace(self, instruction: Replace, held: Tensors) -> None:
        parameter = held[self.program.graph.values[instruction.parameter].name]
        new = held[instruction.source]
        if new is not parameter:
            parameter.copy_(new)

    def _call(self, at: int, key: tuple[int, ...], loss_scale: float) -> LocalCall:
        if at not in self._calls:
            graph, program = self.program.graph, self.program
            node = graph.nodes[at]
            self._calls[at] = LocalCall(
                node,
                program.strategies[at],
                tuple(graph.values[value] for value in node.inputs),
                tuple(graph.values[value] for value in node.outputs),
                program.mesh,
                self.rank,
                self.groups,
                self.device,
            )
        call = self._calls[at]
        return call.of_microbatch((self._seed, *key, first_name(call.node.name)), loss_scale)
