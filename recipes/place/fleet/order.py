"""Which actions of a round must wait for which."""

from collections.abc import Mapping, Sequence

from recipes.place.fleet.action import Action, Devices, Load, Stop, Unload


def waits_for(
    actions: Sequence[Action], hosted: Mapping[Devices, Sequence[str]]
) -> list[tuple[int, ...]]:
    """For each action the indices of the earlier ones that must be done first; all others may go on
    beside it.

    What touches the same devices keeps its order. What takes a replica away waits for the loads of
    that model before it, for it may rely on them.

    Args:
        hosted: models of the groups that are there now.

    >>> there = {(0,): ["a"]}
    >>> waits_for([Load((1,), "a", 8), Load((2,), "b", 8), Unload((0,), "a")], there)
    [(), (), (0,)]
    """
    found = []
    for at, action in enumerate(actions):
        taken: set[str] = set()
        if isinstance(action, Unload):
            taken = {action.model}
        elif isinstance(action, Stop):
            taken = set(hosted.get(action.devices, ()))
        found.append(
            tuple(
                before
                for before, other in enumerate(actions[:at])
                if set(other.devices) & set(action.devices)
                or (isinstance(other, Load) and other.model in taken)
            )
        )
    return found
