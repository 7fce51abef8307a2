"""Random valid schedules: any placement, slices, skip inputs, and any order the rules allow.

Plain seeded code: ``random_schedule(random.Random(seed))`` gives the same schedule everywhere.
"""

import random
from collections.abc import Iterable

from blocks.pipeline import Action, Kind, Schedule
from blocks.pipeline.dependencies import sender
from blocks.pipeline.schedule import chunks_of
from blocks.pipeline.simulate import receive_of


def random_schedule(
    rng: random.Random,
    *,
    max_ranks: int = 4,
    max_stages: int = 6,
    max_sequences: int = 3,
    max_slices: int = 4,
    skips: bool = True,
    recompute: bool = True,
    lowered: bool = False,
) -> Schedule:
    """A schedule that can run and is complete.

    Its programs are one random order of all actions in which everything comes after what it needs.
    Backwards are split or not, slice by slice; some slices are recomputed.

    Args:
        skips: let edges beside the chain be.
        recompute: let slices be recomputed.
        lowered: with sends and receives, each message at a random place between its producer and
            its consumer, the same for both of its ranks, so that rendezvous works as well.
    """
    num_ranks = rng.randint(1, max_ranks)
    num_stages = rng.randint(num_ranks, max(num_ranks, max_stages))
    placement = [
        *range(num_ranks),
        *(rng.randrange(num_ranks) for _ in range(num_stages - num_ranks)),
    ]
    rng.shuffle(placement)
    num_slices = tuple(rng.randint(1, max_slices) for _ in range(rng.randint(1, max_sequences)))
    edges = tuple(
        (source, target)
        for source in range(num_stages)
        for target in range(source + 1, num_stages)
        if target == source + 1 or (skips and rng.random() < 0.3)
    )
    empty = Schedule("random", tuple(placement), num_slices, ((),) * num_ranks, edges)
    split, again = rng.random(), rng.random() * recompute
    work: list[Action] = []
    for stage, chunk in enumerate(chunks_of(tuple(placement))):
        for sequence, count in enumerate(num_slices):
            for piece in range(count):
                forward = Action(Kind.FORWARD, stage, chunk, sequence, piece)
                kinds = [Kind.FULL_BACKWARD]
                if rng.random() < split:
                    kinds = [Kind.BACKWARD, Kind.WEIGHT]
                if rng.random() < again:
                    kinds.append(Kind.RECOMPUTE)
                work += [forward, *(forward.on(kind) for kind in kinds)]
    order = _order(rng, empty, work)
    if lowered:
        order = _with_messages(rng, empty, order)
    programs = [[a for a in order if placement[a.stage] == rank] for rank in range(num_ranks)]
    return Schedule("random", tuple(placement), num_slices, tuple(map(tuple, programs)), edges)


def _order(rng: random.Random, schedule: Schedule, work: list[Action]) -> list[Action]:
    """Everything after what it needs; how greedily backwards are taken is drawn too."""
    again = {action for action in work if action.kind is Kind.RECOMPUTE}
    waits: dict[Action, set[Action]] = {}
    after: dict[Action, list[Action]] = {}
    for action in work:
        needed = set(schedule.needs(action))
        if action.kind.is_backward:
            needed |= again & {action.on(Kind.RECOMPUTE)}
        waits[action] = needed
        for before in needed:
            after.setdefault(before, []).append(action)
    ready = [action for action in work if not waits[action]]
    hurry = rng.choice((0.0, 0.0, 0.5, 0.95))
    order: list[Action] = []
    while ready:
        late = [i for i, action in enumerate(ready) if action.kind is not Kind.FORWARD]
        pick = rng.choice(late) if late and rng.random() < hurry else rng.randrange(len(ready))
        action = ready.pop(pick)
        order.append(action)
        done = action.on(Kind.BACKWARD) if action.kind.is_backward else action
        for follower in after.get(done, ()):
            waits[follower].discard(done)
            if not waits[follower]:
                ready.append(follower)
    assert len(order) == len(work)
    return order


def _with_messages(rng: random.Random, schedule: Schedule, order: Iterable[Action]) -> list[Action]:
    """Sends and receives, side by side at a place between producer and consumer."""
    order = list(order)
    at = {a.on(Kind.BACKWARD) if a.kind.is_backward else a: i for i, a in enumerate(order)}
    eager = rng.choice((0.0, 0.5, 1.0))
    placed: list[tuple[float, list[Action]]] = [(i, [action]) for i, action in enumerate(order)]
    for index, action in enumerate(order):
        if action.kind is not Kind.FORWARD and not action.kind.is_backward:
            continue
        for needed in schedule.needs(action):
            if schedule.placement[needed.stage] == schedule.placement[action.stage]:
                continue
            first = at[needed]
            spot = first if rng.random() < eager else rng.randrange(first, index)
            receive = receive_of(action, needed)
            pair = [sender(schedule, receive), receive]
            placed.append((spot + rng.uniform(0.1, 0.9), pair))
    return [action for _, actions in sorted(placed, key=lambda item: item[0]) for action in actions]
