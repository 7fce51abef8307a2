"""Sends and receives put into programs of compute actions."""

import dataclasses

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule


def with_transfers(schedule: Schedule) -> Schedule:
    """The schedule with a receive right before what needs it and a send right after what makes it;
    one that has sends or receives is returned as it is."""
    if any(not action.kind.computes for program in schedule.programs for action in program):
        return schedule
    programs = tuple(
        tuple(step for action in program for step in _around(schedule, action))
        for program in schedule.programs
    )
    return dataclasses.replace(schedule, programs=programs)


def _around(schedule: Schedule, action: Action) -> list[Action]:
    rank = schedule.placement[action.stage]

    def apart(stages: tuple[int, ...]) -> list[int]:
        return [stage for stage in stages if schedule.placement[stage] != rank]

    sources, targets = schedule.sources(action.stage), schedule.targets(action.stage)
    if action.kind is Kind.FORWARD:
        first = [action.on(Kind.RECEIVE_FORWARD, peer) for peer in apart(sources)]
        return [*first, action, *(action.on(Kind.SEND_FORWARD, peer) for peer in apart(targets))]
    if action.kind.is_backward:
        first = [action.on(Kind.RECEIVE_BACKWARD, peer) for peer in apart(targets)]
        return [*first, action, *(action.on(Kind.SEND_BACKWARD, peer) for peer in apart(sources))]
    return [action]
