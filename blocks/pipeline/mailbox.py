"""``Mailbox``: a rank's receives, posted ahead in the order in which the others send."""

import collections
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.transport import Handle, TensorSpec, Transport
from blocks.pipeline.watch import Watch

Specs = Callable[[Action], Sequence[TensorSpec]]
"""Shapes and dtypes of the tensors a send action moves."""

_RECEIVES = {Kind.SEND_FORWARD: Kind.RECEIVE_FORWARD, Kind.SEND_BACKWARD: Kind.RECEIVE_BACKWARD}


class Mailbox:
    """Posts receives early and hands out what arrives.

    Invariants:
        1. Receives from a rank are posted in the order of that rank's sends.
        2. From every rank at most ``ahead`` sends are posted beyond those asked for.
    """

    def __init__(
        self, transport: Transport, watch: Watch, sends: Mapping[int, Sequence[Action]], ahead: int
    ) -> None:
        """
        Args:
            sends: for every other rank, what it sends here, in order.
            ahead: how many sends of a rank to be ready for.
        """
        self._transport, self._watch = transport, watch
        self._sends, self._ahead = sends, ahead
        self._rank_of = {action: rank for rank, sent in sends.items() for action in sent}
        self._to_post: dict[int, collections.deque[Action]] = {}
        self._posted: dict[Action, list[Handle]] = {}
        self._open: collections.Counter[int] = collections.Counter()
        self._specs: Specs | None = None

    def begin(self, specs: Specs) -> None:
        """Begin a step: post the first receives."""
        self._specs = specs
        self._posted.clear()
        self._open.clear()
        self._to_post = {rank: collections.deque(sent) for rank, sent in self._sends.items()}
        for rank in self._to_post:
            self._post(rank)

    def take(self, send: Action) -> tuple[Tensor, ...]:
        """The tensors of a send to this rank; waits for them."""
        rank = self._rank_of[send]
        while send not in self._posted:
            self._post_one(rank)
        handles = self._posted.pop(send)
        text = f"{receive_of(send)!r} from"
        found = tuple(self._watch.wait(handle, text, rank) for handle in handles)
        self._open[rank] -= 1
        self._post(rank)
        return found

    def _post(self, rank: int) -> None:
        while self._to_post[rank] and self._open[rank] < self._ahead:
            self._post_one(rank)

    def _post_one(self, rank: int) -> None:
        assert self._specs is not None, "begin comes first"
        send = self._to_post[rank].popleft()
        self._posted[send] = [
            self._transport.receive(spec, rank, send) for spec in self._specs(send)
        ]
        self._open[rank] += 1


def receive_of(send: Action) -> Action:
    """The receive that belongs to a send; its chunk is not set.

    >>> receive_of(Action.parse("SF0>1(3,5)", chunk=0))
    RF1>0(3,5)
    """
    return Action(_RECEIVES[send.kind], send.peer, 0, send.sequence, send.slice, send.stage)


def sends_to(schedule: Schedule, rank: int) -> dict[int, list[Action]]:
    """For every other rank its sends to ``rank`` in order."""
    return {
        other: [
            action
            for action in program
            if action.kind in _RECEIVES and schedule.placement[action.peer] == rank
        ]
        for other, program in enumerate(schedule.programs)
        if other != rank
    }
