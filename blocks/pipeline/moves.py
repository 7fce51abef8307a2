"""Which tensors every action of a program takes and which it makes, worked out before a step."""

from typing import NamedTuple

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule


class Move(NamedTuple):
    """An action with the tensors it takes and makes, named by the sends that move them between
    stages, whether or not the stages are on one rank.

    text: the action's, for reports.
    takes: of a forward in ascending, of a backward in descending order of the other stage.
    makes: in ascending order of the other stage.
    """

    action: Action
    text: str
    takes: tuple[Action, ...] = ()
    makes: tuple[Action, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        """(sequence, slice)."""
        return self.action.sequence, self.action.slice


def moves(schedule: Schedule, program: tuple[Action, ...]) -> list[Move]:
    """The moves of a program of ``schedule``."""
    return [_move(schedule, action) for action in program]


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
        return Move(action, text, makes=(send(sent, action.peer, stage),))
    return Move(action, text)
