"""``Ledger``: which bytes are held while a program runs. Needs no torch."""

import math
from collections.abc import Callable, Mapping, Sequence

from blocks.sharding.op_graph import OpNode
from blocks.sharding.placement import Placement, Replicate, Shard
from blocks.sharding.program.instruction import (
    Compute,
    Free,
    Instruction,
    Replace,
    Reshard,
)
from blocks.sharding.program.program import Program
from blocks.sharding.reshard_plan import Step
from blocks.sharding.spec import ShardingSpec

_VIEWS = frozenset(
    {
        *("_unsafe_view", "alias", "detach", "diagonal", "expand", "flatten", "permute", "reshape"),
        *(
            "select",
            "slice",
            "split",
            "split_with_sizes",
            "squeeze",
            "t",
            "transpose",
            "unflatten",
            "unsqueeze",
        ),
        *("unbind", "view"),
    }
)


_MERGES = frozenset({"_unsafe_view", "flatten", "reshape", "view"})
"""Views that may make one dim of several."""


def short_name(node: OpNode) -> str:
    """An operation's name without its library and overload: ``view`` of ``aten.view.default``."""
    return node.op.removeprefix("aten.").split(".")[0]


def is_view(node: OpNode) -> bool:
    """Whether an operation's output is its first input's memory, seen another way."""
    return short_name(node) in _VIEWS and len(node.inputs) == 1


Inside = Callable[[OpNode, Sequence[tuple[int, ...]]], int]
"""Bytes an operation allocates and lets go inside of itself, from the local shapes it makes."""


class Ledger:
    """Follows a program instruction by instruction and counts the bytes one rank holds.

    Names that share memory (views) hold it together: it is free when the last of them is.

    Invariants:
        1. ``held`` is the sum of the memories that some name has.
        2. ``peak`` is the largest ``held`` there was, with what operations hold for a moment.
    """

    def __init__(self, program: Program, rank: int, *, inside: Inside | None = None) -> None:
        self.program, self.rank, self._inside = program, rank, inside
        self.held = self.peak = 0
        self._memory_of: dict[str, int] = {}
        self._memories: dict[int, tuple[int, int]] = {}  # bytes and number of names
        self._num_memories = 0
        self._shapes: dict[object, tuple[int, ...]] = {}

    def local_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what the rank holds under a local name."""
        placements = self.program.placements_of[name]
        shape = self.program.graph.values[self.program.value_of[name]].shape
        return self.shape_under(shape, placements)

    def shape_under(
        self, shape: tuple[int, ...], placements: tuple[Placement, ...]
    ) -> tuple[int, ...]:
        """Shape of what the rank holds of a tensor that lies as given."""
        key = (shape, placements)
        if key not in self._shapes:
            spec = ShardingSpec(self.program.mesh, placements)
            self._shapes[key] = spec.local_shape(shape, self.rank)
        return self._shapes[key]

    def num_bytes(self, name: str) -> int:
        """Of what the rank holds under a local name."""
        itemsize = self.program.graph.values[self.program.value_of[name]].itemsize
        return math.prod(self.local_shape(name)) * itemsize

    def hold(self, name: str, num_bytes: int | None = None) -> None:
        """A name for memory of its own."""
        size = self.num_bytes(name) if num_bytes is None else num_bytes
        self._num_memories += 1
        self._memory_of[name] = self._num_memories
        self._memories[self._num_memories] = (size, 1)
        self.held += size
        self.peak = max(self.peak, self.held)

    def share(self, name: str, source: str) -> None:
        """Another name for the memory of ``source``."""
        memory = self._memory_of[source]
        size, count = self._memories[memory]
        self._memories[memory] = (size, count + 1)
        self._memory_of[name] = memory

    def free(self, name: str) -> None:
        """A name goes."""
        memory = self._memory_of.pop(name)
        size, count = self._memories.pop(memory)
        if count > 1:
            self._memories[memory] = (size, count - 1)
        else:
            self.held -= size

    def for_a_moment(self, num_bytes: int) -> None:
        """Memory that comes and goes."""
        self.peak = max(self.peak, self.held + num_bytes)

    def restart_peak(self) -> None:
        self.peak = self.held

    def names(self) -> Mapping[str, int]:
        """The memory of every name there is."""
        return dict(self._memory_of)

    def bytes_of(self, names: Sequence[str]) -> int:
        """Of the memories of some names, each once."""
        memories = {self._memory_of[name] for name in names}
        return sum(self._memories[memory][0] for memory in memories)

    def run(self, instructions: Sequence[Instruction]) -> None:
        """Follow instructions."""
        for instruction in instructions:
            if isinstance(instruction, Compute):
                self._compute(instruction)
            elif isinstance(instruction, Reshard):
                self._reshard(instruction)
            elif isinstance(instruction, Free):
                self.free(instruction.name)
            else:
                assert isinstance(instruction, Replace)

    def _compute(self, instruction: Compute) -> None:
        node = self.program.graph.nodes[instruction.node]
        if node.role == "accumulate":
            return  # in place: the accumulator is there
        if node.role == "update":
            self.for_a_moment(self.num_bytes(instruction.inputs[0]))  # the denominator
            self.share(instruction.outputs[0], instruction.inputs[0])
            return
        if is_view(node) and not self._is_copied(node, instruction.inputs[0]):
            for name in instruction.outputs:
                self.share(name, instruction.inputs[0])
            return
        for name in instruction.outputs:
            self.hold(name)
        if self._inside is not None:
            shapes = [self.local_shape(name) for name in instruction.outputs]
            self.for_a_moment(self._inside(node, shapes))

    def _is_copied(self, node: OpNode, source: str) -> bool:
        """Whether a view is none after all: heads that share memory (``expand``) have to have their
        own before dims of theirs are merged."""
        memory, _ = self._memories[self._memory_of[source]]
        return short_name(node) in _MERGES and self.num_bytes(source) > memory

    def _reshard(self, instruction: Reshard) -> None:
        """Every step makes a tensor from that of the step before, which then goes."""
        value = self.program.graph.values[instruction.value]
        before, own = 0, 0
        for step in instruction.steps:
            made, moment = step_memory(step, value.shape, value.itemsize, self.rank)
            self.for_a_moment(before + made + moment)
            before = own = made
        self.hold(instruction.result, own)


def step_memory(step: Step, shape: Sequence[int], itemsize: int, rank: int) -> tuple[int, int]:
    """Bytes of the tensor a step makes, padding included, and of those it needs for a moment."""
    axis, num_ranks = step.axis, step.before.mesh.size(step.axis)
    sizes = list(step.before.replace(axis, Replicate()).local_shape(shape, rank))
    after = math.prod(step.after.local_shape(shape, rank)) * itemsize
    if num_ranks == 1:
        return (0 if step.collective not in ("narrow", "mask") else after), 0
    if step.collective in ("narrow", "mask", "all_reduce"):
        return after, 0
    if step.collective == "all_to_all":
        assert isinstance(step.target, Shard)
        held = step.before.local_shape(shape, rank)
        copied = math.prod(held) * itemsize if math.prod(held[: step.target.dim]) > 1 else 0
        return after, after + copied
    cut = step.source if step.collective == "all_gather" else step.target
    assert isinstance(cut, Shard)
    longest = -(-sizes[cut.dim] // num_ranks)
    uneven = sizes[cut.dim] % num_ranks != 0
    sizes[cut.dim] = longest
    part = math.prod(sizes) * itemsize
    if step.collective == "all_gather":
        held = math.prod(step.before.local_shape(shape, rank)) * itemsize
        padded = part if held < part else 0
        return after, num_ranks * part + padded
    inner = math.prod(sizes[: cut.dim]) > 1
    copied = num_ranks * part if inner else (part * uneven)
    return part, copied
