"""``Mailbox``: a rank's receives, posted ahead in the order in which the others send."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from blocks.pipeline.action import Action
from blocks.pipeline.moves import RECEIVES
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.transport import Handle, TensorSpec, Transport
from blocks.pipeline.watch import Watch

Specs = Callable[[Action], Sequence[TensorSpec]]
"""Shapes and dtypes of the tensors a send action moves."""


class Mailbox:
    """Posts receives early and hands out what arrives.

    Invariants:
        1. Receives from a rank are posted in the order of that rank's sends.
        2. Unless asked for more, from every rank at most ``ahead`` sends are posted and not taken.
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
        self._place = {
            action: (rank, index)
            for rank, sent in sends.items()
            for index, action in enumerate(sent)
        }
        self._num_posted: dict[int, int] = {}
        self._num_taken: dict[int, int] = {}
        self._posted: dict[Action, list[Handle]] = {}
        self._specs: Specs | None = None

    def begin(self, specs: Specs) -> None:
        """Begin a step: post the first receives."""
        self._specs = specs
        self._posted.clear()
        for rank in self._sends:
            self._num_posted[rank] = self._num_taken[rank] = 0
            self._post_up_to(rank, self._ahead)

    def post(self, send: Action) -> None:
        """Be ready for a send to this rank, and for those before it."""
        rank, index = self._place[send]
        self._post_up_to(rank, index + 1)

    def take(self, send: Action) -> tuple[Tensor, ...]:
        """The tensors of a send to this rank; waits for them."""
        self.post(send)
        rank, _ = self._place[send]
        handles = self._posted.pop(send)
        text = f"{receive_of(send)!r} from"
        found = tuple(self._watch.wait(handle, text, rank) for handle in handles)
        self._num_taken[rank] += 1
        self._post_up_to(rank, self._num_taken[rank] + self._ahead)
        return found

    def _post_up_to(self, rank: int, count: int) -> None:
        assert self._specs is not None, "begin comes first"
        for send in self._sends[rank][self._num_posted[rank] : count]:
            self._posted[send] = [
                self._transport.receive(spec, rank, send) for spec in self._specs(send)
            ]
            self._num_posted[rank] += 1


def receive_of(send: Action) -> Action:
    """The receive that belongs to a send; its chunk is not set.

    >>> receive_of(Action.parse("SF0>1(3,5)", chunk=0))
    RF1>0(3,5)
    """
    return Action(RECEIVES[send.kind], send.peer, 0, send.sequence, send.slice, send.stage)


def sends_to(schedule: Schedule, rank: int) -> dict[int, list[Action]]:
    """For every other rank its sends to ``rank`` in order."""
    return {
        other: [
            action
            for action in program
            if action.kind in RECEIVES and schedule.placement[action.peer] == rank
        ]
        for other, program in enumerate(schedule.programs)
        if other != rank
    }
