"""``lifetimes``: from when to when a rank holds what of which slice. Needs no torch."""

from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.check import check_complete
from blocks.pipeline.schedule import Schedule


class Held(StrEnum):
    """What is held of a slice at a stage; each is named as its size in ``MemorySizes``."""

    ACTIVATIONS = "activations"
    """What the backward needs beside keys and values: from the forward, or from the recomputation
    where there is one, to the backward."""
    KEYS_VALUES = "keys_values"
    """Keys and values, which later slices read: from the forward to the backward."""
    ACCUMULATORS = "accumulators"
    """Gradients of keys and values: from the first backward of the sequence at the stage, which
    adds to those of all slices before it, to the slice's own."""
    WEIGHT_INPUTS = "weight_inputs"
    """What a weight gradient of its own needs: from the backward to it."""
    INPUTS = "inputs"
    """Inputs of a stage that is recomputed: from the forward to the backward. Where nothing is
    recomputed they are among the activations."""
    WEIGHT_GRADIENTS = "weight_gradients"
    """A contribution to the weights' gradients that waits for its turn (sequences ascending, slices
    descending): from the weight gradient to the one after which its turn comes. None waits in an
    order that ``check_schedule`` finds canonical."""


class Lifetime(NamedTuple):
    """Held from the beginning of action ``begin`` of a rank's program to the end of ``end``."""

    what: Held
    stage: int
    sequence: int
    slice: int
    begin: int
    end: int


def lifetimes(
    schedule: Schedule, *, recompute: Collection[int] = (), whole_prefix: bool = False
) -> tuple[tuple[Lifetime, ...], ...]:
    """For every rank what it holds.

    Args:
        recompute: stages that make their activations again within the backward where the program
            has no recomputation.
        whole_prefix: keys, values and their gradients are held for whole sequences, from the first
            forward at a stage to the last backward, as by one buffer for each.

    Raises:
        ValueError: a schedule that is not complete, a stage there is none of.
    """
    for stage in recompute:
        known = 0 <= stage < schedule.num_stages
        check(known, "recompute", f"stages below {schedule.num_stages}", stage)
    indices = check_complete(schedule)
    found = []
    for rank, at in enumerate(indices):
        held: list[Lifetime] = []
        stages = [stage for stage, other in enumerate(schedule.placement) if other == rank]
        for stage in stages:
            for sequence, count in enumerate(schedule.num_slices):
                cells = [
                    Action(Kind.FORWARD, stage, schedule.chunks[stage], sequence, piece)
                    for piece in range(count)
                ]
                held += _of_sequence(cells, at, stage in recompute, whole_prefix)
            held += _waiting(schedule, stage, at)
        found.append(tuple(held))
    return tuple(found)


def _of_sequence(
    forwards: list[Action], at: dict[Action, int], recompute: bool, whole_prefix: bool
) -> Iterator[Lifetime]:
    """What is held of one sequence at one stage; ``forwards`` are those of its slices."""
    backwards = [_index(at, forward, Kind.BACKWARD) for forward in forwards]
    first_forward, last_backward = at[forwards[0]], backwards[0]
    for forward, end in zip(forwards, backwards, strict=True):
        begin, where = at[forward], (forward.stage, forward.sequence, forward.slice)
        again = at.get(forward.on(Kind.RECOMPUTE), end if recompute else None)
        yield Lifetime(Held.ACTIVATIONS, *where, begin if again is None else again, end)
        if again is not None:
            yield Lifetime(Held.INPUTS, *where, begin, end)
        if whole_prefix:
            yield Lifetime(Held.KEYS_VALUES, *where, first_forward, last_backward)
            yield Lifetime(Held.ACCUMULATORS, *where, first_forward, last_backward)
        else:
            yield Lifetime(Held.KEYS_VALUES, *where, begin, end)
            yield Lifetime(Held.ACCUMULATORS, *where, backwards[-1], end)
        weight = at.get(forward.on(Kind.WEIGHT))
        if weight is not None:
            yield Lifetime(Held.WEIGHT_INPUTS, *where, end, weight)


def _waiting(schedule: Schedule, stage: int, at: dict[Action, int]) -> Iterator[Lifetime]:
    """Contributions to the weights' gradients of a stage that come before their turn."""
    turn = 0
    for sequence, count in enumerate(schedule.num_slices):
        for piece in range(count - 1, -1, -1):
            forward = Action(Kind.FORWARD, stage, schedule.chunks[stage], sequence, piece)
            made = _index(at, forward, Kind.WEIGHT)
            turn = max(turn, made)
            if made < turn:
                yield Lifetime(Held.WEIGHT_GRADIENTS, stage, sequence, piece, made, turn)


def _index(at: dict[Action, int], forward: Action, kind: Kind) -> int:
    """Where the backward or weight gradient of a slice is, on its own or in a full backward."""
    found = at.get(forward.on(kind))
    return at[forward.on(Kind.FULL_BACKWARD)] if found is None else found
