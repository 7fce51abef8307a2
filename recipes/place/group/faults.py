"""What can go wrong with a group, by name."""

import contextlib
import dataclasses
import signal
from typing import Literal

from recipes.serve.parallel.start import UNKNOWN


@dataclasses.dataclass(frozen=True)
class LostReason:
    """Why a group is at an end.

    kind: ``not_started``, its process did not come up; ``ended``, the process or its connection
    did; ``silent``, no heartbeat came; ``stuck``, a step takes too long; ``garbled``, it sent what
    is no message; ``closed``, it was asked to go.
    text: for people.
    """

    kind: Literal["not_started", "ended", "silent", "stuck", "garbled", "closed"]
    text: str


class WorkLost(Exception):
    """What a group computed is gone, and nobody has read of it; the group itself may go on."""


class GroupLost(WorkLost):
    """The group is at an end, and nobody has read anything of what it was asked for."""

    def __init__(self, group: str, reason: LostReason) -> None:
        super().__init__(f"group {group}: {reason.text}")
        self.group = group
        self.reason = reason


class LoadFailed(Exception):
    """A model could not be loaded, in the words of the group, which goes on."""


class NotHosted(Exception):
    """The group does not serve that model, or no more."""


def how_it_ended(code: int) -> str:
    """An exit code in words.

    >>> how_it_ended(-9), how_it_ended(1)
    ('its process was killed by SIGKILL', 'its process ended with exit status 1')
    """
    if code == UNKNOWN:
        return "its process is gone"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    if code > 255:  # UNKNOWN of recipes.serve.parallel: no process has such a one
        return "its process or its machine is gone"
    return f"its process ended with exit status {code}"
