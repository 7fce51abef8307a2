"""``Schedule``: who does what in which order, as data. Needs no torch.

A schedule decides everything about order and nothing about time: generators write it, a checker
proves it, a simulator times it, an executor follows it.
"""

import dataclasses
import functools
from typing import Any

from blocks._checks import check, check_count, reading
from blocks.pipeline.action import Action, Kind


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The programs of all ranks for one training step.

    name: for people.
    placement: rank of every stage. The stages of a rank, ascending, are its chunks.
    num_slices: number of token slices of every sequence.
    programs: for every rank the actions it does, in order.
    edges: pairs (from, to) of stages between which data flows, ``from < to``; a chain when empty.
        More than the chain are skip inputs.

    >>> both = [Action(Kind.FORWARD, 0, 0, 0, 0), Action(Kind.FULL_BACKWARD, 0, 0, 0, 0)]
    >>> Schedule("one", (0,), (1,), (tuple(both),)).num_ranks
    1
    """

    name: str
    placement: tuple[int, ...]
    num_slices: tuple[int, ...]
    programs: tuple[tuple[Action, ...], ...]
    edges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.edges:
            chain = tuple((stage, stage + 1) for stage in range(len(self.placement) - 1))
            object.__setattr__(self, "edges", chain)
        ranks, every = set(self.placement), list(range(len(self.programs)))
        fits = ranks == set(every) and all(isinstance(rank, int) for rank in ranks)
        check(fits, "placement", f"stages on each of the ranks {every}", self.placement)
        for count in self.num_slices:
            check_count("num_slices", count, "a sequence has at least one slice")
        for source, target in self.edges:
            inside = 0 <= source < target < self.num_stages
            check(inside, "edge", "an earlier and a later stage", (source, target))
        check(len(set(self.edges)) == len(self.edges), "edges", "each once", self.edges)
        for rank, program in enumerate(self.programs):
            for action in program:
                self.check_action(rank, action)

    def check_action(self, rank: int, action: Action) -> None:
        """
        Raises:
            ValueError: an action that is none of this schedule's ``rank``.
        """
        stage, counts = action.stage, self.num_slices
        inside = 0 <= stage < self.num_stages and self.placement[stage] == rank
        known = inside and action.chunk == self.chunks[stage] and 0 <= action.sequence < len(counts)
        if known and 0 <= action.slice < counts[action.sequence]:
            return  # no messages are written where nothing is wrong: planners make many actions
        check(inside, f"action {action} of rank {rank}", "a stage of that rank", action.stage)
        chunk = self.chunks[action.stage]
        check(action.chunk == chunk, f"chunk of {action}", chunk, action.chunk)
        known = 0 <= action.sequence < len(self.num_slices)
        check(known, f"sequence of {action}", f"below {len(self.num_slices)}", action.sequence)
        limit = self.num_slices[action.sequence]
        check(0 <= action.slice < limit, f"slice of {action}", f"below {limit}", action.slice)

    @property
    def num_ranks(self) -> int:
        return len(self.programs)

    @property
    def num_stages(self) -> int:
        return len(self.placement)

    @property
    def num_sequences(self) -> int:
        return len(self.num_slices)

    @functools.cached_property
    def chunks(self) -> tuple[int, ...]:
        """For every stage, which of its rank's stages it is."""
        return chunks_of(self.placement)

    def sources(self, stage: int) -> tuple[int, ...]:
        """Stages whose output ``stage`` takes, ascending."""
        return self._neighbours[0][stage]

    def targets(self, stage: int) -> tuple[int, ...]:
        """Stages that take the output of ``stage``, ascending."""
        return self._neighbours[1][stage]

    @functools.cached_property
    def _neighbours(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        stages, edges = range(self.num_stages), sorted(self.edges)
        sources = [tuple(a for a, b in edges if b == stage) for stage in stages]
        return sources, [tuple(b for a, b in edges if a == stage) for stage in stages]

    def needs(self, action: Action) -> list[Action]:
        """What must be done before ``action``, apart from what its own rank does before it.

        Every rule is here; ``dependencies`` spells the same out on integers. Compute actions name
        compute actions, whatever rank they run on; backwards are named ``BACKWARD`` even where the
        program has ``FULL_BACKWARD``.

        1. A forward follows the forward of the same slice at the stages it takes input from, and
           that of the slice before it at its own stage, whose keys and values it reads.
        2. A backward follows its own forward, the backward of the same slice at the stages it
           gave its output to, and that of the slice after it at its own stage, which adds to the
           gradients of this slice's keys and values.
        3. A recomputation follows the forward it repeats; a weight gradient follows its backward.
        """
        forward, backward = action.on(Kind.FORWARD), action.on(Kind.BACKWARD)
        if action.kind is Kind.FORWARD:
            found = [self._at(forward, stage) for stage in self.sources(action.stage)]
            return found + [forward._replace(slice=action.slice - 1)] * (action.slice > 0)
        if action.kind.is_backward:
            found = [self._at(backward, stage) for stage in self.targets(action.stage)]
            later = action.slice + 1 < self.num_slices[action.sequence]
            return [forward, *found, *[backward._replace(slice=action.slice + 1)] * later]
        if action.kind is Kind.RECOMPUTE:
            return [forward]
        assert action.kind is Kind.WEIGHT, f"{action} moves a tensor"
        return [backward]

    def _at(self, action: Action, stage: int) -> Action:
        return action._replace(stage=stage, chunk=self.chunks[stage])

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        programs = [[repr(action) for action in program] for program in self.programs]
        return {**dataclasses.asdict(self), "programs": programs}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Schedule":
        """
        Raises:
            ValueError: data that is no schedule.
        """
        with reading("schedule", data, cls):
            placement = tuple(data["placement"])
            chunks = chunks_of(placement)

            def read(text: str) -> Action:
                action = Action.parse(text, 0)
                known = action.stage < len(chunks)
                check(known, f"stage of {text}", f"below {len(chunks)}", action.stage)
                return action._replace(chunk=chunks[action.stage])

            programs = tuple(tuple(read(text) for text in program) for program in data["programs"])
            edges = tuple((source, target) for source, target in data["edges"])
            return cls(data["name"], placement, tuple(data["num_slices"]), programs, edges)


def chunks_of(placement: tuple[int, ...]) -> tuple[int, ...]:
    """For every stage, how many stages of the same rank come before it.

    >>> chunks_of((0, 1, 1, 0))
    (0, 0, 1, 1)
    """
    return tuple(placement[:stage].count(rank) for stage, rank in enumerate(placement))
