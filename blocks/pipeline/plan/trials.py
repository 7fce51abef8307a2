"""``Trials``: orders of one step by what describes them, built once and timed. Needs no torch."""

import dataclasses
from collections.abc import Sequence

from blocks.pipeline.plan.merge import Counted, Word, merge, positions
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.walk import INFINITY, Walk, walk, walk_filling

MERGE, FILLING, GRAPH = 3, 3, 8
"""Steps of a walk that take as long as merging an action, as walking past one while weight
gradients fill waits, and as making the tables for a forward."""


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What describes an order.

    counted: what distances between forwards and backwards are counted in.
    offsets: for every rank how far its forwards run ahead.
    room: share of the cap that forwards may fill.
    max_pending: for every rank how many weight gradients may be put aside.
    slack: share of a weight gradient that may delay what comes after it.
    """

    counted: Counted
    offsets: tuple[float, ...]
    room: float = 1.0
    max_pending: tuple[float, ...] = ()
    slack: float = 0.0


@dataclasses.dataclass(frozen=True)
class Order:
    """Programs of all ranks as numbers of a ``StepGraph``, and what they come to."""

    knobs: Knobs
    programs: tuple[tuple[int, ...], ...]
    makespan_s: float
    peak_bytes: tuple[float, ...]


class Trials:
    """Orders of one graph under one cap, by their knobs; merges are made once.

    walked: actions walked through so far, what an effort is counted in; other work counts as the
        walk that takes as long.
    """

    def __init__(self, graph: StepGraph, cap: int | float) -> None:
        self.graph, self.cap = graph, cap
        self.walked = GRAPH * graph.size
        self._positions: dict[tuple[int, Counted], tuple[list[float], list[float]]] = {}
        self._words: dict[tuple[int, float, Counted, float], Word | None] = {}
        self._like = graph.costs.first_alike()

    def word(self, rank: int, knobs: Knobs) -> Word | None:
        """The merge of ``rank``; None where it does not fit under the cap."""
        offset, counted, room = knobs.offsets[rank], knobs.counted, knobs.room
        if (rank, offset, counted, room) not in self._words:
            like = self._like[rank]
            if like == rank:
                word = self._merge(rank, offset, counted, room)
            else:
                # the same merge as on a rank that is like this one, of other numbers
                other = self.word(like, dataclasses.replace(knobs, offsets=(offset,) * (like + 1)))
                shift = (rank - like) * self.graph.per_stage
                word = other and Word(tuple([n + shift for n in other.numbers]), other.peak_bytes)
            self._words[rank, offset, counted, room] = word
        return self._words[rank, offset, counted, room]

    def _merge(self, rank: int, offset: float, counted: Counted, room: float) -> Word | None:
        stream = self.graph.stream(rank)
        if (rank, counted) not in self._positions:
            self._positions[rank, counted] = positions(stream, counted)
            self.walked += MERGE * len(stream.forwards)
        self.walked += MERGE * len(stream.forwards)
        cap = self.cap if room == 1.0 else self.cap * room
        return merge(stream, self._positions[rank, counted], offset, cap)

    def words(self, knobs: Knobs) -> list[Word] | None:
        found = [self.word(rank, knobs) for rank in range(len(knobs.offsets))]
        fit = [word for word in found if word is not None]
        return fit if len(fit) == len(found) else None

    def estimate(self, knobs: Knobs, num_sequences: int) -> float:
        """Seconds ``num_sequences`` would take, from the few sequences of the graph."""
        words = self.words(knobs)
        if words is None:
            return INFINITY
        found = self.walk(words, knobs)
        missing = num_sequences - self.graph.num_sequences
        if not missing or found.makespan_s == INFINITY:
            return found.makespan_s
        # The first sequences fill the pipeline and the last ones drain it; time those between.
        first = (self.graph.num_sequences - 2) // 2 - 1
        last = self.graph.num_sequences - 2 - first
        return found.makespan_s + missing * (found.ends[last] - found.ends[first]) / (last - first)

    def walk(self, words: Sequence[Word], knobs: Knobs) -> Walk:
        numbers = [word.numbers for word in words]
        if self.graph.costs.splits_weights:
            self.walked += 2 * FILLING * self.graph.size
            return walk_filling(self.graph, numbers, self.cap, *pending(knobs))[0]
        self.walked += 2 * self.graph.size
        return walk(self.graph, numbers)

    def order(self, words: Sequence[Word], knobs: Knobs) -> Order | None:
        """The whole order; None where ranks would wait for ever."""
        numbers = [word.numbers for word in words]
        peaks = [word.peak_bytes for word in words]
        if self.graph.costs.splits_weights:
            found, programs, peaks = walk_filling(self.graph, numbers, self.cap, *pending(knobs))
        else:
            found, programs = walk(self.graph, numbers), _with_recomputes(self.graph, numbers)
        if found.makespan_s == INFINITY:
            return None
        return Order(knobs, tuple(map(tuple, programs)), found.makespan_s, tuple(peaks))


def pending(knobs: Knobs) -> tuple[tuple[float, ...], float]:
    """The knobs of weight gradients, with defaults."""
    return knobs.max_pending or (INFINITY,) * len(knobs.offsets), knobs.slack


def _with_recomputes(graph: StepGraph, words: Sequence[tuple[int, ...]]) -> list[list[int]]:
    size = graph.size
    if not graph.recomputes:
        return [list(word) for word in words]
    again = {n for n in range(size, 2 * size) if graph.seconds[n + size]}
    return [[x for n in word for x in ((n + size, n) if n in again else (n,))] for word in words]
