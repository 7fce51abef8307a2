"""``PlannedModule``: one rank's share of a module that is trained by a program."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from blocks._checks import check, fail
from blocks.sharding import Group, Program
from blocks.sharding.op_graph import Phase
from blocks.sharding.program import BUFFER, Compute, Instruction, Reshard
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.execute.local_call import LocalCall
from recipes.plan.execute.machine import Machine, Operations, Tensors
from recipes.plan.execute.optimizer import AdamW, Optimizer, apply
from recipes.plan.execute.planned_state import PlannedState

Microbatch = Mapping[str, Tensor]
"""Whole tensors by the name of the graph's input nodes; the same on all ranks."""


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, with buffers that ``state_dict`` leaves out."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


class PlannedModule:
    """One rank's share of the steps: its state, its gradients and the passes that make them.

    ``step`` is ``accumulate`` for every microbatch, and ``update``. In between, ``gradients`` has
    the sums.

    Invariants:
        1. Those of ``state``; gradients lie as their accumulators are placed.
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
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            program: see ``blocks.sharding.lower``.
            operations: what its nodes compute, ``FxOperations`` of a traced module.
            rank, groups: in the program's mesh; for every axis the group the rank is in.
            state: whole parameters and buffers by name, see ``state_of``.
            optimizer: default AdamW.
            seed: of random numbers, the same on all ranks.
            device: where this rank computes.

        Raises:
            ValueError: a state without a parameter or buffer that the program has.
        """
        self.program, self.rank, self.groups = program, rank, groups
        self.optimizer = optimizer if optimizer is not None else AdamW()
        self.machine = Machine(program, rank, groups, operations, seed=seed, device=device)
        self.state = PlannedState(self.machine, self.optimizer, state)
        self.num_updates = 0
        self._num_microbatches = 0
        self._gradients: dict[str, Tensor] = {}
        self._reduced: Tensors | None = None

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
        self.state.renew_buffers(results)
        loss = self.loss_of(results)
        if loss is None:
            raise fail("results of the program", "a loss", program.results)
        return loss

    def loss_of(self, results: Mapping[int, Tensor]) -> Tensor | None:
        """The loss among some results, whole, on every rank; None where there is none."""
        nodes = self.program.graph.nodes
        for at, name in self.program.results:
            if at in results and nodes[at].op not in (BUFFER, SEND):
                return self.machine.whole(name, results[at])
        return None

    def begin(self, microbatch: Microbatch) -> Tensors:
        """What is held when the forward pass begins; gradients are zeros in the first."""
        program = self.program
        if not self._gradients:
            for name in program.names("accumulate"):
                value = program.graph.values[program.value_of[name]]
                dtype = getattr(torch, value.dtype)
                shape, device = self.machine.local_shape(name), self.machine.device
                self._gradients[name] = torch.zeros(shape, dtype=dtype, device=device)
        held: Tensors = {**self.state.parameters, **self._gradients}
        for node in program.graph.nodes:
            if node.role == "input" and node.phase == "forward" and node.op != RECEIVE:
                name = program.graph.values[node.outputs[0]].name
                if name in self.state.buffers:
                    held[name] = self.state.buffers[name]
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

    def gradients(self) -> dict[str, Tensor]:
        """The sums so far by name of the parameter, whole, on every rank."""
        whole = self.machine.whole
        return {name: whole(local, self._gradients[local]) for name, local in self._sums()}

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
            self._reduced = {**self.state.parameters, **self._gradients}
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
                part as the update lies; rounded where the parameter is kept narrower.
        """
        self.num_updates += 1
        self._num_microbatches = 0
        held: Tensors = {**self.state.parameters, **self._gradients}
        steps: Sequence[Instruction] = self.program.update
        if self._reduced is not None:
            held, steps = self._reduced, self._update_in_two[1]
        self._gradients, self._reduced = {}, None

        def apply_to(call: LocalCall, parameter: Tensor, gradient: Tensor) -> Tensor:
            name = call.inputs[0].name
            if new is not None:
                return new(name).to(parameter.dtype)
            moments = self.state.moments[name]
            apply(self.optimizer, parameter, gradient, moments, self.num_updates)
            return parameter

        self.machine.run(steps, held, key=(self.num_updates,), update=apply_to)

    def drop(self) -> None:
        """Forget the gradients: a step that is not taken."""
        self._gradients, self._reduced = {}, None
        self._num_microbatches = 0

    def check_invariants(self) -> None:
        self.state.check_invariants()
        for name, part in self._gradients.items():
            expected = self.machine.local_shape(name)
            assert tuple(part.shape) == expected, f"{name}: {tuple(part.shape)}, not {expected}"
