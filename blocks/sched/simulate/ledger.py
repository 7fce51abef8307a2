"""What was asked, and whether each request comes to what it must."""

from collections.abc import Callable, Iterable

from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.simulate.model import generate_alone

ENDED_FROM_OUTSIDE = {FinishReason.CANCELLED, FinishReason.FAILED, FinishReason.STOP_STRING}


class Ledger:
    """The accepted requests until their last sample has ended, and how the others did.

    **Invariants**, asserted as samples end:

    1. A sample ends once, with the tokens that it draws alone, or the first of them where it is
       ended from outside.
    2. A request ends with all its samples, or from outside with its first one before the fork.

    live: by id.
    """

    def __init__(self) -> None:
        self.live: dict[str, Request] = {}
        self._ended: dict[str, dict[int, FinishReason]] = {}

    def accept(self, request: Request) -> None:
        """The scheduler took a request."""
        self.live[request.request_id] = request

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """A sample is said to be over."""
        request = sequence.request
        assert sequence.state is State.FINISHED, sequence
        assert sequence.finish_reason is reason, (sequence, reason)
        expected = generate_alone(request, sequence.index)
        output = sequence.output_tokens
        if reason in ENDED_FROM_OUTSIDE:
            assert output == expected[: len(output)], (sequence, output, expected)
        else:
            assert output == expected, (sequence, reason, output, expected)
        ended = self._ended.setdefault(request.request_id, {})
        assert sequence.index not in ended, f"{sequence} ended twice"
        ended[sequence.index] = reason

    def settle(self, requests: Iterable[Request], has_more: Callable[[str], object]) -> None:
        """Strike off those of the requests that have no sample left.

        Args:
            has_more: whether the scheduler knows unfinished samples of a request.
        """
        for request in requests:
            request_id = request.request_id
            if request_id in self.live and not has_more(request_id):
                del self.live[request_id]
                ended = self._ended.pop(request_id)
                before_fork = set(ended) == {0} and ended[0] in ENDED_FROM_OUTSIDE
                assert len(ended) == request.num_samples or before_fork, (request, ended)

    def num_positions(self) -> int:
        """Most positions that all live requests may come to, and one each to be admitted."""
        return sum(
            (len(request.prompt_tokens) + request.max_tokens + 1) * request.num_samples
            for request in self.live.values()
        )
