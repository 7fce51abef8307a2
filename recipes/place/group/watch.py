"""Whether a group's process comes up, and whether it goes on giving signs of life."""

import asyncio
import contextlib
import time

from recipes.place.group.faults import LostReason, how_it_ended
from recipes.place.group.local import GroupProcess

TICKS = 10
"""Looks for a sign of life in the time that silence is borne."""


class Pulse:
    """Counts the looks that found no sign of life since the last one.

    Counted, not timed: where the event loop itself was held up, nobody else was silent.
    """

    def __init__(self) -> None:
        self.num_missed = 0

    def beat(self) -> None:
        """A sign of life."""
        self.num_missed = 0


async def watch_start(
    process: GroupProcess, up: asyncio.Event, *, timeout_s: float
) -> LostReason | None:
    """Wait until a group is up; why it will not be, else."""
    deadline = time.monotonic() + timeout_s
    while not up.is_set():
        code = process.exit_code()
        if code is not None:
            return LostReason("not_started", f"{how_it_ended(code)} before it called")
        if time.monotonic() > deadline:
            return LostReason("not_started", f"it did not call within {timeout_s:g} s")
        await pause(up, 0.02)
    return None


async def watch_pulse(pulse: Pulse, ended: asyncio.Event, *, silence_s: float) -> LostReason | None:
    """Wait until a group has been silent for too long; None once it has ended otherwise."""
    pulse.beat()
    while not ended.is_set():
        await pause(ended, silence_s / TICKS)
        pulse.num_missed += 1
        if pulse.num_missed > TICKS:
            return LostReason("silent", f"no sign of life for {silence_s:g} s")
    return None


async def exit_of(process: GroupProcess, patience_s: float) -> int | None:
    """The exit code, once there is one; None if there is none in time."""
    deadline = time.monotonic() + patience_s
    while True:
        code = process.exit_code()
        if code is not None or time.monotonic() >= deadline:
            return code
        await asyncio.sleep(0.005)


async def pause(event: asyncio.Event, seconds: float) -> None:
    """Until the event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
