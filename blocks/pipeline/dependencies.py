"""``dependencies``: what every action of a schedule waits for, as integers. Needs no torch.

Times, proofs and the places of receives all come from this graph; it is built once per schedule.
The rules are those of ``Schedule.needs``, on flat indices because planners walk millions of
actions; a test holds the two together.
"""

import dataclasses

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule


class Deadlock(ValueError):
    """No rank can go on; the message names what each stuck rank waits for."""


@dataclasses.dataclass(frozen=True)
class Dependencies:
    """Every action numbered rank by rank, in the order of the programs.

    actions: all of them, by number.
    ranks: rank of every action.
    order: all numbers in an order in which they can run.
    remote: for every action the numbers of the actions of other ranks it waits for. What it needs
        of its own rank comes before it in the program, so the program says it already.
    """

    actions: list[Action]
    ranks: list[int]
    order: list[int]
    remote: list[tuple[int, ...]]


def dependencies(schedule: Schedule) -> Dependencies:
    """The graph of ``schedule``, built on the first call and kept with it.

    In programs of compute actions alone a consumer waits for the producer, whatever its rank.
    Programs with sends and receives are taken at their word: a send leaves when its rank comes to
    it and is buffered, a receive is posted when its rank comes to it and holds up nothing, and
    whoever consumes what another rank produced waits for both.

    Raises:
        Deadlock: some ranks wait for ever; each is named with its action and what it waits for.
    """
    kept = schedule.__dict__.get("_dependencies")
    if kept is None:
        kept = _Walk(schedule).run()
        schedule.__dict__["_dependencies"] = kept  # the schedule is frozen, so it stays true
    return kept


def is_lowered(schedule: Schedule) -> bool:
    """Whether the programs hold sends and receives."""
    return any(not action.kind.computes for program in schedule.programs for action in program)


class _Walk:
    """Runs all programs without time: every rank as far as it can, then those it woke.

    What is done has a key: a forward its cell, which is stage * cells a stage + offset of the
    sequence + slice; a backward its cell + ``size``; a send or receive itself.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.lowered = is_lowered(schedule)
        self.offsets = [0]
        for count in schedule.num_slices:
            self.offsets.append(self.offsets[-1] + count)
        self.num_cells = self.offsets[-1]
        self.size = size = self.num_cells * schedule.num_stages
        every = range(schedule.num_stages)
        self.sources = [[s * self.num_cells for s in schedule.sources(stage)] for stage in every]
        self.targets = [
            [s * self.num_cells + size for s in schedule.targets(stage)] for stage in every
        ]
        """For every stage what to add to an inner offset for the keys at its neighbours."""
        self.done: dict[object, int] = {}
        """Number of the action that did it, by key."""
        self.asleep: dict[object, list[int]] = {}
        """Ranks that wait, by the key they wait for."""
        self.actions = [action for program in schedule.programs for action in program]
        self.ranks = [rank for rank, program in enumerate(schedule.programs) for _ in program]
        self.ends: list[int] = []
        for program in schedule.programs:
            self.ends.append(len(program) + (self.ends[-1] if self.ends else 0))
        self.at = [end - len(p) for end, p in zip(self.ends, schedule.programs, strict=True)]
        self.order: list[int] = []
        self.remote: list[tuple[int, ...]] = [()] * len(self.actions)

    def run(self) -> Dependencies:
        awake = list(range(self.schedule.num_ranks - 1, -1, -1))
        while awake:
            self._advance(awake.pop(), awake)
        if len(self.order) < len(self.actions):
            raise Deadlock(self._stuck())
        return Dependencies(self.actions, self.ranks, self.order, self.remote)

    def _advance(self, rank: int, awake: list[int]) -> None:
        """Run ``rank`` until it waits or ends; ranks that need not wait any more join ``awake``."""
        number, end = self.at[rank], self.ends[rank]
        actions, ranks, done, asleep = self.actions, self.ranks, self.done, self.asleep
        needs = self._lowered_needs if self.lowered else self._needs
        while number < end:
            keys, key = needs(actions[number])
            remote: tuple[int, ...] = ()
            for needed in keys:
                before = done.get(needed)
                if before is None:
                    asleep.setdefault(needed, []).append(rank)
                    self.at[rank] = number
                    return
                if ranks[before] != rank:
                    remote += (before,)
            if remote:
                self.remote[number] = remote
            self.order.append(number)
            if key is not None and key not in done:
                done[key] = number
                if key in asleep:
                    awake += asleep.pop(key)
            number += 1
        self.at[rank] = number

    def _needs(self, action: Action) -> tuple[list[int], int | None]:
        """Keys of what must be done before a compute action, and its own."""
        kind, stage, _, sequence, piece, _ = action
        inside = self.offsets[sequence] + piece
        cell = stage * self.num_cells + inside
        if kind is Kind.FORWARD:
            keys = [base + inside for base in self.sources[stage]]
            if piece:
                keys.append(cell - 1)
            return keys, cell
        if kind is Kind.RECOMPUTE:
            return [cell], None
        back = self.size + cell
        if kind is Kind.WEIGHT:
            return [back], None
        keys = [base + inside for base in self.targets[stage]]
        keys.append(cell)
        if piece + 1 < self.schedule.num_slices[sequence]:
            keys.append(back + 1)
        return keys, back

    def _lowered_needs(self, action: Action) -> tuple[list[object], object]:
        """The same where what other ranks do arrives by a send that a posted receive awaits."""
        kind, schedule = action.kind, self.schedule
        if kind is Kind.RECEIVE_FORWARD or kind is Kind.RECEIVE_BACKWARD:
            return [], action
        if kind is Kind.SEND_FORWARD or kind is Kind.SEND_BACKWARD:
            made = Kind.FORWARD if kind is Kind.SEND_FORWARD else Kind.BACKWARD
            return [self._needs(action.on(made))[1]], action
        keys, key = self._needs(action)
        found: list[object] = []
        for needed in keys:
            stage = needed % self.size // self.num_cells
            if schedule.placement[stage] == schedule.placement[action.stage]:
                found.append(needed)
                continue
            forward = kind is Kind.FORWARD
            receive = action.on(Kind.RECEIVE_FORWARD if forward else Kind.RECEIVE_BACKWARD, stage)
            found += [receive, sender(schedule, receive)]
        return found, key

    def _stuck(self) -> str:
        """Every stuck rank, its action and what it waits for."""
        lines = []
        by_rank = {rank: key for key, ranks in self.asleep.items() for rank in ranks}
        for rank, key in sorted(by_rank.items()):
            number, program = self.at[rank], self.schedule.programs[rank]
            index = number - self.ends[rank] + len(program)
            lines.append(
                f"rank {rank} at {program[index]} (index {index}) waits for {self._say(key)}"
            )
        return "deadlock: expected every rank to reach its end, got " + "; ".join(lines)

    def _say(self, key: object) -> str:
        """What ``key`` stands for, and where the programs have it."""
        if isinstance(key, int):
            cell = key % self.size
            stage, inside = divmod(cell, self.num_cells)
            sequence = max(s for s, offset in enumerate(self.offsets[:-1]) if offset <= inside)
            kinds = (Kind.FORWARD,) if key < self.size else (Kind.BACKWARD, Kind.FULL_BACKWARD)
            piece = inside - self.offsets[sequence]
            chunk = self.schedule.chunks[stage]
            wanted = [Action(kind, stage, chunk, sequence, piece) for kind in kinds]
        else:
            assert isinstance(key, Action)
            wanted = [key]
        rank = self.schedule.placement[wanted[0].stage]
        for index, action in enumerate(self.schedule.programs[rank]):
            if action in wanted:
                return f"{action} of rank {rank} (index {index})"
        return f"{' or '.join(map(repr, wanted))}, which rank {rank} never does"


def sender(schedule: Schedule, receive: Action) -> Action:
    """The send that meets ``receive``."""
    forward = receive.kind is Kind.RECEIVE_FORWARD
    return Action(
        Kind.SEND_FORWARD if forward else Kind.SEND_BACKWARD,
        receive.peer,
        schedule.chunks[receive.peer],
        receive.sequence,
        receive.slice,
        receive.stage,
    )
