"""What groups tell of themselves, as predictions need it."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

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
        router: knows whose step takes how long, and how many go through the stages at a time.
        group_on: the group on some devices; None where there is none.
        clock: of ``state_s``.
    """

    def look(seat: Seat) -> Word:
        group = group_on(seat.devices)
        if group is None or seat.model not in group.state.models:
            return unheard(seat)
        state, models = group.state, group.state.models
        at_work = [
            model for model, told in models.items() if told.standing.num_live or group.unseen(model)
        ]
        stages = _stages(router, seat.devices, state, clock() - group.state_s)
        num_lanes = router.settings.lanes(max(1, len(stages.free_s))) if len(at_work) <= 1 else 1
        own = seat.model == state.stepping
        is_full = own and len(stages.through_s) >= num_lanes
        free_s = stages.free_s[0 if own and num_lanes > 1 else -1] if stages.free_s else 0.0
        others_s = sum(
            (
                stages.last_s
                if stages.last_s and model == state.stepping
                else models[model].last_step_s
                for model in at_work
                if model != seat.model
            ),
            0.0,
        )
        busy_s = max(0.0, free_s, stages.through_s[0] if is_full else 0.0)
        return Word(models[seat.model].standing, group.unseen(seat.model), busy_s, others_s)

    return look


class _Stages(NamedTuple):
    """A group's stages with what is under way in them, by its profile, in seconds from now.

    free_s: when each stage is free. through_s: when each batch is. last_s: what the last one takes
    in all. Nothing where nothing is known.
    """

    free_s: tuple[float, ...] = ()
    through_s: tuple[float, ...] = ()
    last_s: float = 0.0


def _stages(router: Router, devices: Devices, state: GroupState, age_s: float) -> _Stages:
    """As ``GroupRun`` of ``blocks.sched`` keeps its clock: a batch enters a stage when it has left
    the one before, and the batch ahead of it has left this one.

    Args:
        age_s: of the state.
    """
    seat = router.seat(devices, state.stepping)
    if seat is None or seat.step_time is None or not state.under_way:
        return _Stages()
    step_time = seat.step_time
    free_s = [-math.inf] * step_time.num_stages
    if state.before is not None:
        at_s = -state.before.ago_s - age_s
        for stage, seconds in reversed(list(enumerate(step_time(state.before.load)))):
            free_s[stage] = at_s
            at_s -= seconds
    through_s, stage_s = [], ()
    for load, ago_s in state.under_way:
        at_s, stage_s = -ago_s - age_s, step_time(load)
        for stage, seconds in enumerate(stage_s):
            at_s = free_s[stage] = max(at_s, free_s[stage]) + seconds
        through_s.append(at_s)
    return _Stages(tuple(free_s), tuple(through_s), sum(stage_s))
