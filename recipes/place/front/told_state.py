"""What groups tell of themselves, as predictions need it."""

import time
from collections.abc import Callable

from recipes.place.fleet.fleet import Fleet
from recipes.place.fleet.router import Seen
from recipes.place.fleet.seat import Seat
from recipes.place.group import GroupHandle


def told_state(
    fleet: Fleet, clock: Callable[[], float] = time.monotonic
) -> Callable[[Seat], Seen | None]:
    """``Router.look``: the last state of the seat's group, and what was sent there since."""

    def look(seat: Seat) -> Seen | None:
        group = fleet.groups.get(seat.devices)
        handle: GroupHandle | None = None if group is None else group.handle
        if handle is None or seat.model not in handle.state.models:
            return None
        state = handle.state
        stands = state.models[seat.model].standing
        for prompt_len in handle.unseen(seat.model):
            stands = stands.joined(prompt_len, seat.block_size)
        others_s = sum(
            (
                told.last_step_s
                for model, told in state.models.items()
                if model != seat.model and told.standing.num_live
            ),
            0.0,
        )
        return Seen(stands, _busy_s(fleet, handle, seat, clock()), others_s)

    return look


def _busy_s(fleet: Fleet, handle: GroupHandle, seat: Seat, now_s: float) -> float:
    """Seconds that are left of the step under way, by the profile of whose step it is."""
    state = handle.state
    if not state.stepping or state.load is None:
        return 0.0
    stepping = fleet.router.seat(seat.devices, state.stepping)
    if stepping is None or stepping.step_time is None:
        return 0.0
    whole_s = sum(stepping.step_time(state.load))
    return max(0.0, whole_s - state.step_s - (now_s - handle.state_s))
