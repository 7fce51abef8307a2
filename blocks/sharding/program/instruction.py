"""``Instruction``: one thing every rank does in a planned step. Needs no torch."""

from typing import NamedTuple

from blocks.sharding.placement import Placement
from blocks.sharding.reshard_plan import Step


class Compute(NamedTuple):
    """Run an operation on local parts.

    node: index into ``OpGraph.nodes``.
    inputs, outputs: local names, in the order of the rule's.
    """

    node: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.outputs)} = compute {self.node} ({', '.join(self.inputs)})"


class Reshard(NamedTuple):
    """Make a copy of a value that lies another way.

    value: index into ``OpGraph.values``.
    source, result: local names.
    target: placements of the copy.
    steps: the collectives that lead there.
    """

    value: int
    source: str
    result: str
    target: tuple[Placement, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.result} = {' '.join(step.collective for step in self.steps)} ({self.source})"


class Free(NamedTuple):
    """Let go of a local name: nothing after this reads it."""

    name: str

    def __str__(self) -> str:
        return f"free {self.name}"


class Replace(NamedTuple):
    """A parameter takes on its new content; both lie alike.

    parameter: index into ``OpGraph.values``.
    source: local name of the new content.
    """

    parameter: int
    source: str

    def __str__(self) -> str:
        return f"replace {self.parameter} by {self.source}"


Instruction = Compute | Reshard | Free | Replace


def reads(instruction: Instruction) -> tuple[str, ...]:
    """The local names it needs."""
    if isinstance(instruction, Compute):
        return instruction.inputs
    if isinstance(instruction, Free):
        return (instruction.name,)
    return (instruction.source,)


def writes(instruction: Instruction) -> tuple[str, ...]:
    """The local names it makes."""
    if isinstance(instruction, Compute):
        return instruction.outputs
    return (instruction.result,) if isinstance(instruction, Reshard) else ()
