"""Which tensors every action of a program takes and which it makes, worked out before a step."""

from typing import NamedTuple

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule

RECEIVES = {Kind.SEND_FORWARD: Kind.RECEIVE_FORWARD, Kind.SEND_BACKWARD: Kind.RECEIVE_BACKWARD}
"""The receive that belongs to a send."""


class Move(NamedTuple):
    """An action with the tensors it takes and makes, named by the sends that move them between
    stages, whether or not the stages are on one rank.

    text: the action's, for reports.
    takes: of a forward in ascending, of a backward in descending order of the other stage.
    makes: in ascending order of the other stage.
    posts: of a receive: only get ready for it, another move waits for it.
    """

    action: Action
    text: str
    takes: tuple[Action, ...] = ()
    makes: tuple[Action, ...] = ()
    posts: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """(sequence, slice)."""
        return self.action.sequence, self.action.slice


def moves(schedule: Schedule, program: tuple[Action, ...]) -> list[Move]:
    """The moves of a program of ``schedule``.

    A receive is posted where the program has it. It is waited for right before the action that
    takes its tensors, so that no rank stands still for what it does not need yet.
    """
    found: list[Move] = []
    for action in program:
        move = _move(schedule, action)
        if action.kind is Kind.FORWARD or action.kind.is_backward:
            rank = schedule.placement[action.stage]
            away = [send for send in move.takes if schedule.placement[send.stage] != rank]
            found += [_wait(action, send) for send in away]
        found.append(move)
    return found


def _wait(action: Action, send: Action) -> Move:
    """Waits for a send to the stage of ``action``."""
    receive = action.on(RECEIVES[send.kind], send.stage)
    return Move(receive, repr(receive), makes=(send,))


def _move(schedule: Schedule, action: Action) -> Move:
    def send(kind: Kind, source: int, target: int) -> Action:
        chunk = schedule.chunks[source]
        return Action(kind, source, chunk, action.sequence, action.slice, target)

    kind, stage, text = action.kind, action.stage, repr(action)
    sources, targets = schedule.sources(stage), schedule.targets(stage)
    if kind is Kind.FORWARD:
        takes = [send(Kind.SEND_FORWARD, source, stage) for source in sources]
        makes = [send(Kind.SEND_FORWARD, stage, target) for target in targets]
        return Move(action, text, tuple(takes), tuple(makes))
    if kind.is_backward:
        takes = [send(Kind.SEND_BACKWARD, target, stage) for target in reversed(targets)]
        makes = [send(Kind.SEND_BACKWARD, stage, source) for source in sources]
        return Move(action, text, tuple(takes), tuple(makes))
    if kind in (Kind.SEND_FORWARD, Kind.SEND_BACKWARD):
        return Move(action, text, takes=(action,))
    if kind in (Kind.RECEIVE_FORWARD, Kind.RECEIVE_BACKWARD):
        sent = Kind.SEND_FORWARD if kind is Kind.RECEIVE_FORWARD else Kind.SEND_BACKWARD
        return Move(action, text, makes=(send(sent, action.peer, stage),), posts=True)
    return Move(action, text)
