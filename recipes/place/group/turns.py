"""Which of a group's models takes the next step, as ``blocks.sched.cluster_sim.generation``
decides it."""

from collections.abc import Sequence

from recipes.place.group.hosted import Hosted


def whose_turn(ready: Sequence[Hosted], turns: str) -> Hosted:
    """Where steps follow one another.

    Args:
        ready: those that may step, at least one.
        turns: ``due`` or ``round``, as ``GroupSpec``.
    """
    return in_turn(ready, turns)[0]


def who_may_send(working: Sequence[Hosted], turns: str, depth: int) -> tuple[list[Hosted], int]:
    """Where batches follow one another through stages: whose may be sent next, first the one whose
    turn it is, and over how many batches at a time each divides what it has.

    One that is alone at work has ``depth`` batches under way. Where several are, each has one, with
    all it has, and the stages for itself until that is through.

    Args:
        working: those that have anything to do.
    """
    num_batches = depth if len(working) == 1 else 1
    holder = next((one for one in working if one.num_out), None)
    found = []
    for one in in_turn([one for one in working if one.num_out < num_batches], turns):
        if holder not in (None, one):
            break
        found.append(one)
    return found, num_batches


def in_turn(ready: Sequence[Hosted], turns: str) -> list[Hosted]:
    """Those that may step, the one whose turn it is first."""
    if len(ready) <= 1 or turns == "round":
        return sorted(ready, key=lambda one: one.turn)
    return sorted(ready, key=lambda one: (one.due_s(), one.turn))
