"""``Watch``: waiting that says what it waits for, and ends."""

import sys
import time
from collections.abc import Callable

from torch import Tensor

from blocks._checks import check_positive
from blocks.pipeline.transport import Handle, PipelineStuck, Transport

POLL_S = 1.0
"""How often a waiting rank looks whether another has given up."""


class Watch:
    """Waits for handles, reports what stands still and gives up when it does for too long."""

    def __init__(
        self,
        transport: Transport,
        *,
        report_after_s: float,
        abort_after_s: float,
        on_report: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            report_after_s: seconds of waiting after which ``on_report`` is told, and as long again
                between two reports.
            abort_after_s: seconds of waiting after which it is over.
            on_report: default: a line on standard error.
        """
        check_positive("report_after_s", report_after_s)
        check_positive("abort_after_s", abort_after_s)
        self._transport = transport
        self._report_after_s, self._abort_after_s = report_after_s, abort_after_s
        self._on_report = on_report or _print
        self._clock = clock

    def wait(self, handle: Handle, what: str, other: int) -> Tensor:
        """The handle's tensor.

        Args:
            what: is waited for, as reports name it: ``RF2>1(3,5) from``.
            other: the rank it depends on.

        Raises:
            PipelineStuck: it does not come, or another rank gave up.
        """
        began = self._clock()
        report_at = began + self._report_after_s
        while True:
            left = min(report_at, began + self._abort_after_s) - self._clock()
            try:
                return handle.wait(timeout_s=min(max(left, 0.0), POLL_S))
            except TimeoutError:
                now = self._clock()
            except ConnectionError as error:
                reason = self._transport.given_up() or f"the channel broke: {error}"
                raise PipelineStuck(f"{self._waiting(what, other)}; {reason}") from error
            reason = self._transport.given_up()
            if reason is not None:
                raise PipelineStuck(f"{self._waiting(what, other)}; {reason}")
            if now >= began + self._abort_after_s:
                text = f"{self._waiting(what, other)}; waited {now - began:.1f} s"
                self._transport.give_up(text)
                raise PipelineStuck(text)
            if now >= report_at:
                self._on_report(self._waiting(what, other))
                report_at = now + self._report_after_s

    def _waiting(self, what: str, other: int) -> str:
        rank = self._transport.rank
        at = self._transport.status(other)
        return f"rank {rank} waits for {what} rank {other}, which is at {at}"


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
