"""``StageRunner``: what one rank does with one of its stages, slice by slice."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from blocks.pipeline.gradient_sums import GradientSums, turns
from blocks.pipeline.stage import SliceContext, StageModule
from blocks.pipeline.weight_queue import WeightQueue

Key = tuple[int, int]
"""(sequence, slice)."""


@dataclasses.dataclass
class _Slice:
    """A slice between its forward and its backward.

    outputs: with their graph; None while they are to be made again.
    """

    context: SliceContext
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] | None
    queue: WeightQueue | None


class StageRunner:
    """Runs a stage's forwards, recomputations, backwards and weight gradients.

    Invariants:
        1. A slice's inputs and graph are held from its forward to its backward and no longer;
           what its weight gradients need, to those.
        2. Every parameter gets one contribution a slice, and its sum takes them in canonical
           order.
    """

    def __init__(
        self,
        stage: StageModule,
        num_slices: Sequence[int],
        *,
        recomputed: Iterable[Key] = (),
        split: Iterable[Key] = (),
        tied: Iterable[str] = (),
    ) -> None:
        """
        Args:
            recomputed: slices whose forward keeps nothing but inputs.
            split: slices whose weight gradients are an action of their own.
            tied: names of parameters whose sums are kept by lane. They are looked up at every step:
                a module may put other tensors under its names, as FSDP does.
        """
        self.stage, self.tied = stage, tuple(tied)
        self.parameters: list[nn.Parameter] = []
        self._turns = turns(num_slices)
        self._recomputed, self._split = frozenset(recomputed), frozenset(split)
        self._held: dict[Key, _Slice] = {}
        self._put_aside: dict[Key, tuple[WeightQueue, dict[int, Tensor | None]]] = {}
        self._sums: list[GradientSums] = []

    def begin(self, lanes: Sequence[int]) -> None:
        """Begin a step with nothing held; ``lanes`` gives the lane of every sequence."""
        stage = self.stage
        named = (
            dict(stage.named_parameters(remove_duplicate=False))
            if isinstance(stage, nn.Module) and self.tied
            else {}
        )
        tied = {id(named[name]) for name in self.tied}
        self._held.clear()
        self._put_aside.clear()
        self.parameters = [p for p in parameters_of(self.stage) if p.requires_grad]
        lane_of_turn = [lanes[sequence] for sequence, _ in self._turns]
        self._sums = [GradientSums(lane_of_turn, keep_lanes=id(p) in tied) for p in self.parameters]

    def forward(self, inputs: Sequence[Tensor], context: SliceContext) -> tuple[Tensor, ...]:
        """The stage's outputs of a slice, cut off from its graph and laid out as they would arrive
        from another rank."""
        key = (context.sequence, context.slice)
        leaves = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in inputs)
        held = self._held[key] = _Slice(context, leaves, None, None)
        if key in self._recomputed:
            with torch.no_grad():
                outputs = as_tuple(self.stage(*leaves, context=context))
        else:
            outputs = self._record(held)
        return tuple(t.detach().contiguous() for t in outputs)

    @torch.no_grad()
    def look(self, inputs: Sequence[Tensor], context: SliceContext) -> tuple[Tensor, ...]:
        """The stage's outputs of a slice that will have no backward."""
        return tuple(t.contiguous() for t in as_tuple(self.stage(*inputs, context=context)))

    def recompute(self, key: Key) -> None:
        """Make a slice's graph again, with the same random numbers."""
        held = self._held[key]
        assert held.outputs is None, f"the graph of slice {key} is there"
        held.context = dataclasses.replace(held.context)  # a fresh generator
        self._record(held)

    def _record(self, held: _Slice) -> tuple[Tensor, ...]:
        context = held.context
        if (context.sequence, context.slice) in self._split:
            held.queue = WeightQueue({id(p) for p in self.parameters})
        with held.queue or contextlib.nullcontext(), torch.enable_grad():
            held.outputs = as_tuple(self.stage(*held.inputs, context=context))
        return held.outputs

    def backward(self, key: Key, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a slice's floating point inputs, from those of its floating point outputs.

        Weight gradients that are not put aside are counted in.
        """
        if self._held[key].outputs is None:
            self.recompute(key)
        held = self._held.pop(key)
        assert held.outputs is not None
        outputs = [t for t in held.outputs if t.is_floating_point()]
        pairs = [p for p in zip(outputs, gradients, strict=True) if p[0].requires_grad]
        leaves = [t for t in held.inputs if t.requires_grad]
        found: list[Tensor | None] = [None] * (len(leaves) + len(self.parameters))
        if pairs and found:
            wanted = [*leaves, *self.parameters]
            roots, slopes = zip(*pairs, strict=True)
            found = list(torch.autograd.grad(roots, wanted, slopes, allow_unused=True))
        of_inputs, of_weights = found[: len(leaves)], found[len(leaves) :]
        self._count(key, held.queue, of_weights)
        return [
            torch.zeros_like(leaf) if gradient is None else gradient.contiguous()
            for leaf, gradient in zip(leaves, of_inputs, strict=True)
        ]

    def _count(self, key: Key, queue: WeightQueue | None, found: list[Tensor | None]) -> None:
        late = queue.pending if queue is not None else set()
        rest: dict[int, Tensor | None] = {}
        turn = self._turns[key]
        for index, (parameter, gradient) in enumerate(zip(self.parameters, found, strict=True)):
            if id(parameter) in late:
                rest[index] = gradient
            else:
                self._sums[index].add(turn, gradient)
        if queue is not None:
            self._put_aside[key] = queue, rest

    def weights(self, key: Key) -> None:
        """Make the weight gradients that a slice's backward put aside."""
        queue, rest = self._put_aside.pop(key)
        products = queue.take()
        for index, before in rest.items():
            product = products[id(self.parameters[index])]
            total = product if before is None else before + product
            self._sums[index].add(self._turns[key], total)

    def finish(self) -> list[tuple[nn.Parameter, GradientSums]]:
        """Every parameter with its sums; nothing may be under way."""
        assert not self._held, f"slices {sorted(self._held)} had no backward"
        assert not self._put_aside, f"slices {sorted(self._put_aside)} had no weight gradients"
        found, self._sums = list(zip(self.parameters, self._sums, strict=True)), []
        return found


def parameters_of(stage: StageModule) -> list[nn.Parameter]:
    return list(stage.parameters()) if isinstance(stage, nn.Module) else []


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
