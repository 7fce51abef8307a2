"""Tests that are coroutines, each on an event loop of its own."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

LIMIT_S = 120.0
"""No test waits longer for anything."""


async def eventually(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait until it holds; ``TimeoutError`` where it never does."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(2 * LIMIT_S):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run
