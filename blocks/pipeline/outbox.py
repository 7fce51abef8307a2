"""``Outbox``: a rank's sends under way."""

import collections
from collections.abc import Sequence

from torch import Tensor

from blocks.pipeline.action import Action
from blocks.pipeline.mailbox import receive_of
from blocks.pipeline.transport import Handle, Transport
from blocks.pipeline.watch import Watch


class Outbox:
    """Sends without waiting and lets go of tensors that have left."""

    def __init__(
        self, transport: Transport, watch: Watch, placement: Sequence[int], *, synchronous: bool
    ) -> None:
        """
        Args:
            placement: rank of every stage.
            synchronous: wait until every tensor is asked for before going on.
        """
        self._transport, self._watch, self._placement = transport, watch, placement
        self._synchronous = synchronous
        self._under_way: collections.deque[tuple[Handle, Action]] = collections.deque()

    def send(self, tensors: Sequence[Tensor], action: Action) -> None:
        """Send what an action moves."""
        target = self._placement[action.peer]
        for tensor in tensors:
            self._under_way.append((self._transport.send(tensor, target, action), action))
        if self._synchronous:
            self.wait()
        self.let_go()

    def let_go(self) -> None:
        """Forget tensors that have left, without waiting."""
        while self._under_way and self._under_way[0][0].done():
            self._wait_for_first()

    def wait(self) -> None:
        """Wait until everything has left."""
        while self._under_way:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        handle, action = self._under_way[0]
        self._watch.wait(handle, f"{receive_of(action)!r} at", self._placement[action.peer])
        self._under_way.popleft()

    def clear(self) -> None:
        """Forget what is under way."""
        self._under_way.clear()
