"""Changed programs: one random change, and every order fault there can be."""

import dataclasses
import random

from blocks.pipeline import SCHEDULES, Action, Kind, Schedule, check_schedule, lower

FAMILIES = [(name, 2 if name == "zb_v" else 1) for name in SCHEDULES]
FAMILIES += [(name, 2) for name in ("interleaved", "looped_bfs", "slimpipe")]
"""Families with a number of chunks."""


def replaced(schedule: Schedule, rank: int, program: list[Action]) -> Schedule:
    programs = list(schedule.programs)
    programs[rank] = tuple(program)
    return dataclasses.replace(schedule, programs=tuple(programs))


def mutant(rng: random.Random, schedule: Schedule) -> Schedule | None:
    """One change of a program; None where the draw gives none."""
    rank = rng.randrange(schedule.num_ranks)
    program = list(schedule.programs[rank])
    index, other = rng.randrange(len(program)), rng.randrange(len(program))
    how = rng.choice(("swap", "drop", "double", "move", "peer", "kind"))
    if how == "swap":
        program[index], program[other] = program[other], program[index]
    elif how == "drop":
        del program[index]
    elif how == "double":
        program.insert(other, program[index])
    elif how == "move":
        program.insert(other, program.pop(index))
    elif how == "peer" and not program[index].kind.computes:
        peer = rng.randrange(schedule.num_stages)
        program[index] = program[index]._replace(peer=peer)
    elif how == "kind":
        kind = rng.choice(list(Kind))
        program[index] = program[index].on(kind, -1 if kind.computes else program[index].peer)
    if tuple(program) == schedule.programs[rank]:
        return None
    return replaced(schedule, rank, program)


def faults(schedule: Schedule, rank: int, program: list[Action]) -> list[list[Action]]:
    found = []
    for index, action in enumerate(program):
        found.append(program[:index] + program[index + 1 :])
        found += [[*program[:i], action, *program[i:]] for i in (0, index, len(program))]
        for later in range(index + 1, len(program)):
            if depends(schedule, program[later], action):
                swapped = list(program)
                swapped[index], swapped[later] = program[later], action
                found.append(swapped)
        if not action.kind.computes:
            for peer in range(schedule.num_stages):
                if peer != action.peer:
                    found.append(
                        [*program[:index], action._replace(peer=peer), *program[index + 1 :]]
                    )
    return found


def depends(schedule: Schedule, later: Action, action: Action) -> bool:
    """Whether ``later`` needs ``action`` first, or both are messages of one channel."""
    first, second = action.kind, later.kind
    same = action.on(first) == later.on(first)
    """The same slice at the same stage."""
    if second.computes and first.computes:
        made = action.on(Kind.BACKWARD) if first.is_backward else action
        return made in schedule.needs(later)
    if not (second.computes or first.computes):
        same_end = first.value[0] == second.value[0]
        return same_end and schedule.placement[later.peer] == schedule.placement[action.peer]
    if second.computes:
        takes = {Kind.RECEIVE_FORWARD: second is Kind.FORWARD}
        return same and takes.get(first, first is Kind.RECEIVE_BACKWARD and second.is_backward)
    gives = {Kind.SEND_FORWARD: first is Kind.FORWARD, Kind.SEND_BACKWARD: first.is_backward}
    return same and gives.get(second, False)


def count_refused(name: str, num_chunks: int) -> tuple[int, list[Schedule]]:
    """How many faults a small schedule of a family can have, and those that are not refused."""
    schedule = lower(SCHEDULES[name](3, (2, 1), num_chunks=num_chunks))
    count, missed = 0, []
    for rank, program in enumerate(schedule.programs):
        for changed in faults(schedule, rank, list(program)):
            count += 1
            try:
                check_schedule(replaced(schedule, rank, changed))
            except ValueError:
                continue
            missed.append(replaced(schedule, rank, changed))
    return count, missed
