"""``Waits``: a line where a rank stands in a collective for long."""

import sys
import threading
import time
from collections.abc import Callable, Sequence

from blocks._checks import check_positive


class Waits:
    """Reports collectives of a group that take longer than they should, each once.

    Entered around every collective; a thread looks at the clock. All ranks but the one that is
    missing report, with the number of the collective they are in, so the missing one is known.
    """

    def __init__(
        self,
        rank: int,
        ranks: Sequence[int],
        report_after_s: float,
        on_report: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            rank, ranks: of the job: this one, and those of the group.
            report_after_s: seconds in a collective after which it is reported.
            on_report: default: a line on standard error.
        """
        check_positive("report_after_s", report_after_s)
        self._who = f"rank {rank} waits for others of ranks {list(ranks)}"
        self._after, self._say = report_after_s, on_report or _to_stderr
        self._num_begun = 0
        self._inside: tuple[int, str, float] | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, collective: str) -> None:
        self._num_begun += 1
        self._inside = (self._num_begun, collective, time.monotonic())

    def end(self) -> None:
        self._inside = None

    def _watch(self) -> None:
        reported = 0
        while True:
            time.sleep(self._after / 4)
            inside = self._inside
            if inside is None or inside[0] == reported:
                continue
            number, collective, since = inside
            waited = time.monotonic() - since
            if waited >= self._after:
                reported = number
                self._say(f"{self._who} in {collective}, its collective {number}, {waited:.1f} s")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
