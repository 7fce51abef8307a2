"""``PlannedModule``: one rank's share of a module that is trained by a program."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from blocks._checks import check, fail
from blocks.sharding import Group, Program, ShardingSpec
from blocks.sharding.op_graph import Phase
from blocks.sharding.program import BUFFER, RENEWED, Compute, Instruction, Reshard
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.execute.exchange import to_whole
from recipes.plan.execute.local_call import LocalCall
from recipes.plan.execute.machine import Machine, Operations, Tensors
from recipes.plan.execute.optimizer import AdamW, Optimizer, State, apply, new_state

Microbatch = Mapping[str, Tensor]
"""Whole tensors by the name of the graph's input nodes; the same on all ranks."""


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, with buffers that ``state_dict`` leaves out."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


class PlannedModule:
    """Parameters, gradients and optimizer state of one rank, cut as a program has it.

    ``step`` is ``accumulate`` for every microbatch, and ``update``. In between, ``gradients`` has
    the sums.

    Invariants:
        1. Parameters lie as their nodes are placed, gradients as their accumulators, moments as
           their updates run.
        2. Gradients are there from the first ``accumulate`` to the ``update``, or until they are
        dropped; between ``reduce`` and ``update`` also as the update takes them.
    """

    def __init__(
        self,
        program: Program,
        operations: Operations,
        rank: int,
        groups: Mapping[str, Group],
        state: Mapping[str, Tensor],
        *,
        optimizer: Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            program: see ``blocks.sharding.lower``.
            operations: what its nodes compute, ``FxOperations`` of a traced module.
            rank, groups: in the program's mesh; for every axis the group the rank is in.
            state: whole parameters and buffers by name, see ``state_of``.
            optimizer: default AdamW.
            seed: of random numbers, the same on all ranks.

        Raises:
            ValueError: a state without a parameter or buffer that the program has.
        """
        self.program, self.rank, self.groups = program, rank, groups
        self.optimizer = optimizer if optimizer is not None else AdamW()
        self.machine = Machine(program, rank, groups, operations, seed=seed)
        self.num_updates = 0
        self._num_microbatches = 0
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.moments: dict[str, State] = {}
        self._gradients: dict[str, Tensor] = {}
        self._reduced: Tensors | None = None
        self._load(state)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        graph = self.program.graph
        for node in graph.nodes:
            is_buffer = node.role == "input" and node.op == BUFFER
            if node.role != "parameter" and not is_buffer:
                continue
            name = graph.values[node.outputs[0]].name
            if name not in state:
                raise fail(f"state of {name}", "a tensor of that name", sorted(state)[:8])
            part = self.machine.local_part(name, state[name].detach())
            (self.buffers if is_buffer else self.parameters)[name] = part
        for name, (_, spec) in self._updates.items():
            part = self.machine.cut(state[name].detach(), spec)
            self.moments[name] = new_state(self.optimizer, part)

    @property
    def _updates(self) -> dict[str, tuple[int, ShardingSpec]]:
        """For every parameter that is updated its value, and how its update lies."""
        program = self.program
        return {
            program.graph.values[node.inputs[0]].name: (
                node.inputs[0],
                ShardingSpec(program.mesh, strategy.inputs[0]),
            )
            for node, strategy in zip(program.graph.nodes, program.strategies, strict=True)
            if node.role == "update"
        }

    def update_spec(self, name: str) -> ShardingSpec:
        """How the update of a parameter runs, and its moments lie."""
        return self._updates[name][1]

    def step(
        self, microbatches: Sequence[Microbatch], *, loss_scale: float | None = None
    ) -> Tensor:
        """One step of the optimizer.

        Args:
            loss_scale: gradients are those of the summed losses times this; default one over the
                number of microbatches, so that a loss which is a mean stays one.

        Returns:
            The sum of the losses times ``loss_scale``, whole, on every rank.
        """
        check(len(microbatches) > 0, "microbatches", "at least one", "none")
        scale = 1 / len(microbatches) if loss_scale is None else loss_scale
        total: Tensor | None = None
        for microbatch in microbatches:
            loss = self.accumulate(microbatch, loss_scale=scale) * scale
            total = loss if total is None else total + loss
        self.update()
        assert total is not None
        return total

    def accumulate(self, microbatch: Microbatch, *, loss_scale: float = 1.0) -> Tensor:
        """Forward and backward of a microbatch; adds to the gradients.

        Returns:
            Its loss, whole, on every rank.
        """
        program = self.program
        held = self.begin(microbatch)
        key = (self.num_updates, self._num_microbatches)
        self.machine.run(program.forward, held, key=key, loss_scale=loss_scale)
        results = self.take_results(held, "forward")
        self.machine.run(program.backward, held, key=key, loss_scale=loss_scale)
        results |= self.take_results(held, "backward")
        self._num_microbatches += 1
        self.renew_buffers(results)
        loss = self.loss_of(results)
        if loss is None:
            raise fail("results of the program", "a loss", program.results)
        return loss

    def loss_of(self, results: Mapping[int, Tensor]) -> Tensor | None:
        """The loss among some results, whole, on every rank; None where there is none."""
        nodes = self.program.graph.nodes
        for at, name in self.program.results:
            if at in results and nodes[at].op not in (BUFFER, SEND):
                return self.whole(name, results[at])
        return None

    def begin(self, microbatch: Microbatch) -> Tensors:
        """What is held when the forward pass begins; gradients are zeros in the first."""
        program = self.program
        if not self._gradients:
            for name in program.names("accumulate"):
                value = program.graph.values[program.value_of[name]]
                dtype = getattr(torch, value.dtype)
                self._gradients[name] = torch.zeros(self.machine.local_shape(name), dtype=dtype)
        held: Tensors = {**self.parameters, **self._gradients}
        for node in program.graph.nodes:
            if node.role == "input" and node.phase == "forward" and node.op != RECEIVE:
                name = program.graph.values[node.outputs[0]].name
                if name in self.buffers:
                    held[name] = self.buffers[name]
                else:
                    if name not in microbatch:
                        raise fail("microbatch", f"a tensor {name!r}", sorted(microbatch))
                    held[name] = self.machine.local_part(name, microbatch[name])
        return held

    def take_results(self, held: Tensors, phase: Phase) -> dict[int, Tensor]:
        """The results of a phase by output node; what was not saved is held no longer."""
        nodes = self.program.graph.nodes
        found = {at: held[name] for at, name in self.program.results if nodes[at].phase == phase}
        for name in self.program.handed_over(phase):
            del held[name]
        return found

    def renew_buffers(self, results: Mapping[int, Tensor]) -> None:
        """Take over buffers that the forward pass changed."""
        for at in results:
            node = self.program.graph.nodes[at]
            if node.op == BUFFER:
                name = node.name.removesuffix(RENEWED)
                self.buffers[name] = results[at].to(self.buffers[name].dtype)

    def gradients(self) -> dict[str, Tensor]:
        """The sums so far by name of the parameter, whole, on every rank."""
        return {name: self.whole(local, self._gradients[local]) for name, local in self._sums()}

    def _sums(self) -> list[tuple[str, str]]:
        """(parameter, its accumulator), where there is one."""
        graph = self.program.graph
        return [
            (graph.values[node.inputs[0]].name, graph.values[node.inputs[1]].name)
            for node in graph.nodes
            if node.role == "update"
        ]

    def reduce(self) -> dict[str, Tensor]:
        """This rank's part of every gradient, summed over ranks and laid as the update takes it.

        By parameter; what the parts are changed to is what ``update`` sees.
        """
        if self._reduced is None:
            self._reduced = {**self.parameters, **self._gradients}
            self.machine.run(self._update_in_two[0], self._reduced, key=(self.num_updates + 1,))
        graph = self.program.graph
        return {
            graph.values[graph.nodes[step.node].inputs[0]].name: self._reduced[step.inputs[1]]
            for step in self.program.update
            if isinstance(step, Compute) and graph.nodes[step.node].role == "update"
        }

    @functools.cached_property
    def _update_in_two(self) -> tuple[list[Instruction], list[Instruction]]:
        """What sums gradients, and the rest."""
        graph, halves = self.program.graph, ([], [])
        for step in self.program.update:
            sums = (
                isinstance(step, Reshard)
                and graph.nodes[graph.maker[step.value]].role == "accumulate"
            )
            halves[not sums].append(step)
        return halves

    def update(self, new: Callable[[str], Tensor] | None = None) -> None:
        """The optimizer's step; gradients are gone after it.

        Args:
            new: takes the optimizer's place: by name of a parameter what it becomes, this rank's
                part as the update lies.
        """
        self.num_updates += 1
        self._num_microbatches = 0
        held: Tensors = {**self.parameters, **self._gradients}
        steps: Sequence[Instruction] = self.program.update
        if self._reduced is not None:
            held, steps = self._reduced, self._update_in_two[1]
        self._gradients, self._reduced = {}, None

        def apply_to(call: LocalCall, parameter: Tensor, gradient: Tensor) -> Tensor:
            name = call.inputs[0].name
            if new is not None:
                return new(name)
            apply(self.optimizer, parameter, gradient, self.moments[name], self.num_updates)
            return parameter

        self.machine.run(steps, held, key=(self.num_updates,), update=apply_to)

    def drop(self) -> None:
        """Forget the gradients: a step that is not taken."""
        self._gradients, self._reduced = {}, None
        self._num_microbatches = 0

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor of a local name, from this rank's part; a call of all ranks."""
        shape, spec = self.machine.shape(name), self.machine.spec(name)
        return to_whole(part, shape, spec, self.rank, self.groups)

    def whole_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, whole, on every rank."""
        parts = {**self.parameters, **self.buffers}
        return {name: self.whole(name, part) for name, part in parts.items()}

    def check_invariants(self) -> None:
        for name, part in {**self.parameters, **self._gradients, **self.buffers}.items():
            expected = self.machine.local_shape(name)
            assert tuple(part.shape) == expected, f"{name}: {tuple(part.shape)}, not {expected}"
        for name, (value, spec) in self._updates.items():
            expected = spec.local_shape(self.program.graph.values[value].shape, self.rank)
            for moment in self.moments[name].values():
                assert tuple(moment.shape) == expected, f"moments of {name}"
