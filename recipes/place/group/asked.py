"""``Asked``: what a group was asked for and has not answered yet."""

import asyncio
import itertools

from blocks.sched import QueueFull
from recipes.place.group.faults import GroupLost, LoadFailed, NotHosted
from recipes.place.group.messages import Done, Now, Refused
from recipes.place.group.replica import Loaded
from recipes.serve.admission import ContextTooLong

ERRORS = {"load": LoadFailed, "not_hosted": NotHosted, "queue_full": QueueFull}


class Asked:
    """Calls that wait for a group, by number.

    Invariants:
        1. Every call is settled once: by its answer, or with ``GroupLost``.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Loaded | None]] = {}

    def number(self) -> int:
        """A new one, larger than all before."""
        return next(self._numbers)

    def wait(self, number: int) -> asyncio.Future[Loaded | None]:
        """What the answer of that number will be."""
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        return future

    def settle(self, report: Now | Done | Refused) -> None:
        future = self._waiting.pop(report.number, None)
        if future is None or future.done():
            return  # whoever asked has left
        if isinstance(report, Refused):
            future.set_exception(error_of(report))
        else:
            future.set_result(report.loaded if isinstance(report, Now) else None)

    def lose(self, lost: GroupLost) -> None:
        """No answers will come any more."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(lost)


def error_of(report: Refused) -> Exception:
    """What to raise for a refusal."""
    if report.kind == "too_long" and report.numbers is not None:
        return ContextTooLong(*report.numbers)
    if report.kind == "internal":
        return RuntimeError(f"the group's engine failed ({report.text})")
    return ERRORS.get(report.kind, ValueError)(report.text)
