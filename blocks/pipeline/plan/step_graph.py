"""``StepGraph``: every compute action of a step as an integer, with its time, bytes and need.

Orders are searched on this form: no records, no dictionaries, only lists. ``simulate`` on the
schedule it stands for gives the same times; a test holds the two together. Needs no torch.
"""

import dataclasses

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.plan.step_costs import StepCosts, Table


@dataclasses.dataclass(frozen=True)
class RankStream:
    """What one rank has to do, the forwards in their order and the backwards in theirs.

    forwards: their numbers. Sequences ascending, slices ascending at every stage.
    backwards: their numbers. Sequences ascending, slices descending at every stage.
    needed: for every backward how many of ``forwards`` come before it at least.
    forward_s, backward_s: seconds; of a backward with its recomputation and weight gradient.
    kept: bytes every forward leaves behind.
    extra: bytes that live only while a backward runs, recomputed and put aside.
    opened: bytes of accumulators that come with the first backward of a sequence.
    freed: bytes that are gone after a backward and its weight gradient.
    """

    forwards: list[int]
    backwards: list[int]
    needed: list[int]
    forward_s: list[float]
    backward_s: list[float]
    kept: list[float]
    extra: list[float]
    opened: list[float]
    freed: list[float]


class StepGraph:
    """The actions of ``num_sequences`` sequences under ``costs``.

    With ``size`` forwards in the step, forward number ``stage * K + k`` (``K`` per stage, in order)
    is followed at distance ``size`` by backwards, then recomputations, then weight gradients; the
    k-th of those three at a stage is the k-th backward.

    seconds: of every action.
    depends: number of the action at a neighbouring stage that must have arrived; -1 for none.
    latency: seconds until the result of an action is there where it is needed.
    need: bytes an action adds to what is live while it runs.
    change: bytes it leaves live more than before.
    """

    def __init__(self, costs: StepCosts, num_sequences: int) -> None:
        self.costs = costs
        self.num_sequences = num_sequences
        slices, stages = costs.num_slices, costs.num_stages
        self.per_stage = per_stage = num_sequences * slices
        self.size = size = stages * per_stage
        self.recomputes = any(any(row) for row in costs.recompute)
        self.seconds = self._ascending(costs.forward)
        self.latency = self._ascending(costs.send_forward)
        self.depends = [-1] * per_stage + list(range(size - per_stage))
        self.need = self._ascending(costs.kept)
        self.change = list(self.need)
        self._add_backwards()
        self._streams: dict[int, RankStream] = {}

    def _ascending(self, table: Table) -> list[float]:
        return [x for row in table for x in list(row) * self.num_sequences]

    def _descending(self, table: Table) -> list[float]:
        return [x for row in table for x in list(reversed(row)) * self.num_sequences]

    def _add_backwards(self) -> None:
        costs, size, per_stage = self.costs, self.size, self.per_stage
        self.seconds += self._descending(costs.backward)
        self.seconds += self._descending(costs.recompute) + self._descending(costs.weight)
        self.latency += self._descending(costs.send_backward) + [0.0] * (2 * size)
        self.depends += list(range(size + per_stage, 2 * size)) + [-1] * per_stage
        self.depends += [-1] * (2 * size)
        opened = []
        for row in costs.accumulated:
            opened += ([sum(row)] + [0.0] * (len(row) - 1)) * self.num_sequences
        kept, remade, accumulated, aside = (
            self._descending(table)
            for table in (costs.kept, costs.remade, costs.accumulated, costs.put_aside)
        )
        self.need += [a + b for a, b in zip(opened, aside, strict=True)]
        self.need += remade + [0.0] * size
        rows = zip(opened, kept, remade, accumulated, aside, strict=True)
        self.change += [o - k - r - a + p for o, k, r, a, p in rows]
        self.change += remade + [-p for p in aside]
        self._opened, self._extra = opened, [a + b for a, b in zip(remade, aside, strict=True)]
        self._freed = [k + a for k, a in zip(kept, accumulated, strict=True)]

    def stream(self, rank: int) -> RankStream:
        """What ``rank`` does."""
        if rank not in self._streams:
            self._streams[rank] = self._stream(rank)
        return self._streams[rank]

    def _stream(self, rank: int) -> RankStream:
        costs, size, per_stage = self.costs, self.size, self.per_stage
        slices, ranks, chunks = costs.num_slices, costs.num_ranks, costs.num_chunks
        group = per_stage if chunks == 1 else ranks
        forwards, backwards = [], []
        for first in range(0, per_stage, group):
            units = range(first, min(first + group, per_stage))
            for stage in range(rank, costs.num_stages, ranks):
                forwards += [stage * per_stage + unit for unit in units]
            for stage in range(rank + (chunks - 1) * ranks, -1, -ranks):
                backwards += [size + stage * per_stage + unit for unit in units]
        place = {number: index for index, number in enumerate(forwards)}
        needed, most = [], 0
        for number in backwards:
            stage, index = divmod(number - size, per_stage)
            sequence, back = divmod(index, slices)
            own = stage * per_stage + sequence * slices + slices - 1 - back
            most = max(most, place[own] + 1)
            needed.append(most)
        local = [number - size for number in backwards]
        seconds = self.seconds
        return RankStream(
            forwards=forwards,
            backwards=backwards,
            needed=needed,
            forward_s=[seconds[number] for number in forwards],
            backward_s=[
                seconds[number] + seconds[number + size] + seconds[number + 2 * size]
                for number in backwards
            ],
            kept=[self.need[number] for number in forwards],
            extra=[self._extra[index] for index in local],
            opened=[self._opened[index] for index in local],
            freed=[self._freed[index] for index in local],
        )

    def actions(self) -> list[Action]:
        """What every number stands for."""
        costs = self.costs
        ascending, stages = range(costs.num_slices), range(costs.num_stages)
        whole = Kind.BACKWARD if costs.splits_weights else Kind.FULL_BACKWARD
        found = []
        for kind in (Kind.FORWARD, whole, Kind.RECOMPUTE, Kind.WEIGHT):
            pieces = ascending if kind is Kind.FORWARD else ascending[::-1]
            found += [
                Action(kind, stage, stage // costs.num_ranks, sequence, piece)
                for stage in stages
                for sequence in range(self.num_sequences)
                for piece in pieces
            ]
        return found
