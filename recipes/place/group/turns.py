"""Which of a group's models takes the next step."""

from collections.abc import Sequence

from recipes.place.group.hosted import Hosted


def whose_turn(ready: Sequence[Hosted], turns: str) -> Hosted:
    """As ``blocks.sched.cluster_sim.generation`` decides it.

    Args:
        ready: those that may step, at least one.
        turns: ``due`` or ``round``, as ``GroupSpec``.
    """
    if len(ready) == 1 or turns == "round":
        return min(ready, key=lambda one: one.turn)
    return min(ready, key=lambda one: (one.due_s(), one.turn))
