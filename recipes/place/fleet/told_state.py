"""What groups tell of themselves, as predictions need it."""

import time
from collections.abc import Callable
from typing import Protocol

from recipes.place.fleet.action import Devices
from recipes.place.fleet.router import Router
from recipes.place.fleet.seat import Seat, Word, unheard
from recipes.place.group import GroupState


class Telling(Protocol):
    """A group that tells how it is; ``GroupHandle`` meets it.

    state: how it was at ``state_s``.
    """

    state: GroupState
    state_s: float

    def unseen(self, model: str) -> tuple[int, ...]:
        """Prompt lengths of what was sent to a model and ``state`` does not count yet."""
        ...


def told_state(
    router: Router,
    group_on: Callable[[Devices], Telling | None],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Seat], Word]:
    """``Router.look``: the last state of the seat's group, and what was sent there since.

    Args:
        router: knows whose step takes how long.
        group_on: the group on some devices; None where there is none.
        clock: of ``state_s``.
    """

    def look(seat: Seat) -> Word:
        group = group_on(seat.devices)
        if group is None or seat.model not in group.state.models:
            return unheard(seat)
        state = group.state
        step_s = _step_s(router, seat.devices, state)
        left_s = step_s - state.step_s - (clock() - group.state_s)
        others_s = sum(
            (
                step_s if step_s and model == state.stepping else told.last_step_s
                for model, told in state.models.items()
                if model != seat.model and (told.standing.num_live or group.unseen(model))
            ),
            0.0,
        )
        standing = state.models[seat.model].standing
        return Word(standing, group.unseen(seat.model), max(0.0, left_s), others_s)

    return look


def _step_s(router: Router, devices: Devices, state: GroupState) -> float:
    """What the step under way takes in all, by the profile of whose step it is."""
    seat = router.seat(devices, state.stepping)
    if seat is None or seat.step_time is None or state.load is None:
        return 0.0
    return sum(seat.step_time(state.load))
