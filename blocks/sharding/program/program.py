"""``Program``: what every rank of a mesh does in a planned step, as data. Needs no torch."""

import dataclasses
import functools

from blocks._checks import check
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, Phase
from blocks.sharding.placement import Placement
from blocks.sharding.program.instruction import (
    Free,
    Instruction,
    Reshard,
    reads,
    writes,
)
from blocks.sharding.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class Program:
    """The same list of instructions for every rank, with local names for local tensors.

    A value keeps its name where its node makes it; ``name@placements`` is a copy made for the
    forward pass, ``name@placements'`` one for the backward pass and ``name@placements"`` one for
    the update. Parameters and inputs are there from the start. Accumulators are there from the
    start of a step (zeros); a ``Compute`` of an accumulate node adds to its one.

    Invariants, see ``check_invariants``:
    1. an instruction reads names that are there;
    2. copies live inside of a phase, every name is made once in a phase;
    3. beside parameters and accumulators, the forward pass leaves its results and what is saved,
       the backward pass its results, the update nothing.

    graph, mesh, strategies: what was lowered; one strategy a node.
    forward, backward: run once a microbatch.
    update: run once a step.
    saved: names of what the forward pass leaves to the backward pass, inputs among them.
    results: (output node, local name) of what the caller takes at the end of the node's phase.
    """

    graph: OpGraph
    mesh: Mesh
    strategies: tuple[Strategy, ...]
    forward: tuple[Instruction, ...]
    backward: tuple[Instruction, ...]
    update: tuple[Instruction, ...]
    saved: tuple[str, ...]
    results: tuple[tuple[int, str], ...]

    def placements(self, value: int) -> tuple[Placement, ...]:
        """How a value lies where its node makes it."""
        at = self.graph.maker[value]
        place = self.graph.nodes[at].outputs.index(value)
        return self.strategies[at].outputs[place]

    def phase(self, phase: Phase) -> tuple[Instruction, ...]:
        """The instructions of a phase."""
        return {"forward": self.forward, "backward": self.backward, "update": self.update}[phase]

    @functools.cached_property
    def value_of(self) -> dict[str, int]:
        """The value that a local name stands for."""
        found = {value.name: at for at, value in enumerate(self.graph.values)}
        for instruction in (*self.forward, *self.backward, *self.update):
            if isinstance(instruction, Reshard):
                found[instruction.result] = instruction.value
        return found

    @functools.cached_property
    def placements_of(self) -> dict[str, tuple[Placement, ...]]:
        """How every local name lies."""
        found = {v.name: self.placements(at) for at, v in enumerate(self.graph.values)}
        for instruction in (*self.forward, *self.backward, *self.update):
            if isinstance(instruction, Reshard):
                found[instruction.result] = instruction.target
        return found

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the values made by nodes of a role."""
        return names_of(self.graph, role)

    def results_of(self, phase: Phase) -> tuple[str, ...]:
        """Local names of what the caller takes at the end of a phase."""
        return tuple(name for at, name in self.results if self.graph.nodes[at].phase == phase)

    def handed_over(self, phase: Phase) -> set[str]:
        """The results of a phase that nothing reads after it: the caller alone has them then."""
        kept = {*self.names("parameter"), *self.names("accumulate")}
        kept |= set(self.saved) if phase == "forward" else set()
        return set(self.results_of(phase)) - kept

    def __str__(self) -> str:
        lines = [f"program on {self.mesh}"]
        for phase in ("forward", "backward", "update"):
            lines += [f"{phase}:", *(f"  {self._line(i)}" for i in self.phase(phase))]
        return "\n".join(lines)

    def _line(self, instruction: Instruction) -> str:
        text = str(instruction)
        node = getattr(instruction, "node", None)
        return text if node is None else text.replace(f"compute {node}", self.graph.nodes[node].op)

    def check_invariants(self) -> None:
        graph = self.graph
        kept = {*self.names("parameter"), *self.names("accumulate")}
        there = set(kept)
        for phase in ("forward", "backward", "update"):
            there |= set(inputs_of(graph, phase))
            made: set[str] = set()
            for instruction in self.phase(phase):
                missing = set(reads(instruction)) - there
                assert not missing, f"{phase}: {instruction} reads {sorted(missing)}"
                new = set(writes(instruction)) - set(self.names("accumulate"))
                assert not new & made, f"{phase}: {instruction} makes a name again"
                made |= new
                there |= new
                if isinstance(instruction, Free):
                    there.discard(instruction.name)
            results = set(self.results_of(phase))
            assert results <= there, f"{phase}: results {sorted(results - there)} are gone"
            saved = set(self.saved) if phase == "forward" else set()
            left = there - kept - results - saved
            assert not left, f"{phase}: left {sorted(left)}"
            assert saved <= there, f"{phase}: saved {sorted(saved - there)} are gone"
            there -= self.handed_over(phase)
        unread = {graph.values[v].name for v, readers in enumerate(graph.readers) if not readers}
        left = there - set(self.names("parameter")) - unread
        assert not left, f"left after the update: {sorted(left)}"


def names_of(graph: OpGraph, role: str) -> tuple[str, ...]:
    """Names of the values made by nodes of a role."""
    nodes = (node for node in graph.nodes if node.role == role)
    return tuple(graph.values[value].name for node in nodes for value in node.outputs)


def inputs_of(graph: OpGraph, phase: Phase) -> tuple[str, ...]:
    """Names of what is given at the start of a phase."""
    nodes = (node for node in graph.nodes if node.role == "input" and node.phase == phase)
    return tuple(graph.values[value].name for node in nodes for value in node.outputs)


def check_strategies(graph: OpGraph, strategies: tuple[Strategy, ...], mesh: Mesh) -> None:
    """
    Raises:
        ValueError: not one strategy for each node, or one that is none of its node's on the mesh.
    """
    count = len(graph.nodes)
    check(len(strategies) == count, "strategies", f"one a node, {count}", len(strategies))
    for node, strategy in zip(graph.nodes, strategies, strict=True):
        fits = len(strategy.choices) == len(mesh.axes)
        check(fits, f"choices of {node.name}", f"one for each of {mesh.axes}", strategy.choices)
        found = len(strategy.inputs), len(strategy.outputs)
        expected = len(node.inputs), len(node.outputs)
        check(found == expected, f"tensors of the strategy of {node.name}", expected, found)
