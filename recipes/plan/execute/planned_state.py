"""``PlannedState``: what a rank keeps of a module from step to step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from blocks._checks import fail
from blocks.sharding import ShardingSpec
from blocks.sharding.program import BUFFER, RENEWED
from recipes.plan.execute.machine import Machine
from recipes.plan.execute.optimizer import Optimizer, State, new_state


class PlannedState:
    """Parameters, buffers and the optimizer's state of one rank, on its device.

    A parameter has the dtype that the graph has; where that is narrower than float32, the
    optimizer's state has a float32 copy of it, ``master``, made of the values as they were given.

    Invariants:
        1. Parameters and buffers lie as their nodes are placed, moments as their updates run.
    """

    def __init__(self, machine: Machine, optimizer: Optimizer, whole: Mapping[str, Tensor]) -> None:
        """
        Args:
            whole: parameters and buffers by name.

        Raises:
            ValueError: one is missing that the program has.
        """
        self._machine = machine
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.moments: dict[str, State] = {}
        self._updates = self._specs()
        graph = machine.program.graph
        for node in graph.nodes:
            is_buffer = node.role == "input" and node.op == BUFFER
            if node.role != "parameter" and not is_buffer:
                continue
            value = graph.values[node.outputs[0]]
            if value.name not in whole:
                raise fail(f"state of {value.name}", "a tensor of that name", sorted(whole)[:8])
            tensor = whole[value.name].detach()
            if is_buffer:
                self.buffers[value.name] = machine.local_part(value.name, tensor)
            else:
                self._take(optimizer, value.name, tensor, getattr(torch, value.dtype))

    def _take(self, optimizer: Optimizer, name: str, whole: Tensor, dtype: torch.dtype) -> None:
        self.parameters[name] = self._machine.local_part(name, whole, dtype)
        if name in self._updates:
            part = self._machine.cut(whole, self._updates[name])
            self.moments[name] = new_state(optimizer, part, dtype, self._machine.device)

    def _specs(self) -> dict[str, ShardingSpec]:
        program = self._machine.program
        return {
            program.graph.values[node.inputs[0]].name: ShardingSpec(
                program.mesh, strategy.inputs[0]
            )
            for node, strategy in zip(program.graph.nodes, program.strategies, strict=True)
            if node.role == "update"
        }

    def update_spec(self, name: str) -> ShardingSpec:
        """How the update of a parameter runs, and its moments lie."""
        return self._updates[name]

    def renew_buffers(self, results: Mapping[int, Tensor]) -> None:
        """Take over buffers that a forward pass changed.

        Args:
            results: of the program, by output node.
        """
        for at, result in results.items():
            node = self._machine.program.graph.nodes[at]
            if node.op == BUFFER:
                name = node.name.removesuffix(RENEWED)
                self.buffers[name] = result.to(self.buffers[name].dtype)

    def whole(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, whole; a call of all ranks."""
        parts = {**self.parameters, **self.buffers}
        return {name: self._machine.whole(name, part) for name, part in parts.items()}

    def check_invariants(self) -> None:
        machine = self._machine
        for name, part in {**self.parameters, **self.buffers}.items():
            expected = machine.local_shape(name)
            assert tuple(part.shape) == expected, f"{name}: {tuple(part.shape)}, not {expected}"
        for name, spec in self._updates.items():
            expected = spec.local_shape(machine.shape(name), machine.rank)
            for moment in self.moments[name].values():
                assert tuple(moment.shape) == expected, f"moments of {name}"
