"""``check_schedule``: the proof of a schedule before it is launched. Needs no torch."""

from collections.abc import Iterator

from blocks._checks import fail
from blocks.pipeline._check_messages import check_channels, check_messages, check_rendezvous
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import dependencies, is_lowered
from blocks.pipeline.schedule import Schedule


def check_schedule(schedule: Schedule, *, canonical: bool = False) -> None:
    """Prove that ``schedule`` can be run and computes every gradient.

    1. Complete: for every stage, sequence and slice there is one forward, one full backward or one
       backward and one weight gradient, and at most one recomputation.
    2. In order: what an action needs of its own rank comes before it, by the rules of
       ``Schedule.needs``; a recomputation comes before its backward; with sends and receives, a
       send comes after what it sends and a receive before what consumes it.
    3. Without deadlock when sends are buffered.

    With sends and receives also:

    4. Every edge between ranks has its four messages a slice, and there are no others.
    5. Channels in order: the k-th send from a rank to another meets the k-th receive there from it,
       so a transport needs no tags.
    6. Without deadlock when sends wait for their receives and receives for their sends. This is
       the most that a transport can ask, so all in between are safe as well.

    A schedule of compute actions that passes has a lowering that does: ``lower`` makes it.

    Args:
        canonical: refuse also a rank that computes weight gradients of a stage in another order
            than sequences ascending, slices descending, so that nothing need be held back to
            accumulate in that order.

    Raises:
        ValueError: the first fault, with rank, index in its program, action and what is missing.
        Deadlock: the ranks that wait for ever, each with its action and what it waits for.

    >>> F, BW = Kind.FORWARD, Kind.FULL_BACKWARD
    >>> wrong = (Action(BW, 0, 0, 0, 0), Action(F, 0, 0, 0, 0))
    >>> check_schedule(Schedule("wrong", (0,), (1,), (wrong,)))
    Traceback (most recent call last):
    ...
    ValueError: rank 0, index 0, BW0(0,0): expected F0(0,0) before it, got it at index 1
    """
    indices = check_complete(schedule)
    lowered = is_lowered(schedule)
    if lowered:
        check_messages(schedule, indices)
    for rank, program in enumerate(schedule.programs):
        for index, action in enumerate(program):
            for needed in _needs_of_own_rank(schedule, action, lowered, indices[rank]):
                _check_before(rank, index, action, needed, indices[rank])
    if lowered:
        check_channels(schedule)
    dependencies(schedule)
    if lowered:
        check_rendezvous(schedule)
    if canonical:
        _check_canonical(schedule)


def check_complete(schedule: Schedule) -> list[dict[Action, int]]:
    """Point 1 of ``check_schedule``; returns for every rank where its program has what.

    Raises:
        ValueError: the first fault.
    """
    indices = [_indices(rank, program) for rank, program in enumerate(schedule.programs)]
    for cell in _cells(schedule):
        _check_cell(schedule.placement[cell.stage], cell, indices)
    return indices


def _cells(schedule: Schedule) -> Iterator[Action]:
    """The forward of every slice at every stage."""
    for stage, chunk in enumerate(schedule.chunks):
        for sequence, count in enumerate(schedule.num_slices):
            for piece in range(count):
                yield Action(Kind.FORWARD, stage, chunk, sequence, piece)


def _indices(rank: int, program: tuple[Action, ...]) -> dict[Action, int]:
    """Where a rank does what; refuses what is done twice."""
    found: dict[Action, int] = {}
    for index, action in enumerate(program):
        if action in found:
            at = f"it at index {found[action]} already"
            raise fail(f"rank {rank}, index {index}, {action}", "it once in its program", at)
        found[action] = index
    return found


def _check_cell(rank: int, forward: Action, indices: list[dict[Action, int]]) -> None:
    at = indices[rank]
    both, backward = forward.on(Kind.FULL_BACKWARD), forward.on(Kind.BACKWARD)
    weight = forward.on(Kind.WEIGHT)
    halves = [half for half in (backward, weight) if half in at]
    if both in at:
        if halves:
            got = f"{halves[0]} at index {at[halves[0]]} too"
            raise fail(f"rank {rank}, index {at[both]}, {both}", f"no {halves[0]} beside it", got)
    elif not halves:
        raise fail(f"rank {rank}", f"{both}, or {backward} and {weight}, in its program", "neither")
    elif len(halves) == 1:
        missing = weight if halves[0] == backward else backward
        raise fail(f"rank {rank}", f"{missing} to go with {halves[0]}", f"no {missing}")
    if forward not in at:
        raise fail(f"rank {rank}", f"{forward} in its program", f"no {forward}")


def _needs_of_own_rank(
    schedule: Schedule, action: Action, lowered: bool, at: dict[Action, int]
) -> Iterator[Action]:
    """What the rank of ``action`` must have done before it."""
    kind = action.kind
    if kind in (Kind.SEND_FORWARD, Kind.SEND_BACKWARD):
        yield action.on(Kind.FORWARD if kind is Kind.SEND_FORWARD else Kind.BACKWARD)
    if not kind.computes:
        return
    for needed in schedule.needs(action):
        if schedule.placement[needed.stage] == schedule.placement[action.stage]:
            yield needed
        elif lowered:
            forward = kind is Kind.FORWARD
            receive = Kind.RECEIVE_FORWARD if forward else Kind.RECEIVE_BACKWARD
            yield action.on(receive, needed.stage)
    if kind.is_backward and action.on(Kind.RECOMPUTE) in at:
        yield action.on(Kind.RECOMPUTE)


def _check_before(
    rank: int, index: int, action: Action, needed: Action, at: dict[Action, int]
) -> None:
    if needed.kind is Kind.BACKWARD and needed not in at:
        needed = needed.on(Kind.FULL_BACKWARD)
    found = at.get(needed)
    if found is None or found > index:
        got = "it nowhere" if found is None else f"it at index {found}"
        raise fail(f"rank {rank}, index {index}, {action}", f"{needed} before it", got)


def _check_canonical(schedule: Schedule) -> None:
    for rank, program in enumerate(schedule.programs):
        last: dict[int, tuple[tuple[int, int], Action]] = {}
        for index, action in enumerate(program):
            if action.kind not in (Kind.WEIGHT, Kind.FULL_BACKWARD):
                continue
            key = (action.sequence, -action.slice)
            before = last.get(action.stage)
            if before is not None and before[0] > key:
                order = "weight gradients with sequences ascending, slices descending"
                raise fail(f"rank {rank}, index {index}, {action}", order, f"it after {before[1]}")
            last[action.stage] = (key, action)
