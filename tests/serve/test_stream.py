"""Streams: read as they come, or whole; begun anew while nobody has read of them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.sampling_params import SamplingParams
from recipes.serve.stream import Stream, StreamCancelled


def made(num_samples: int = 2) -> Stream:
    return Stream([Job("r", [1], SamplingParams(n=num_samples))], lambda stream, cause: None)


def delta(index: int, token: int, reason: str | None = None) -> Delta:
    return Delta("r", index, [token], "", finish_reason=reason)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_a_whole_answer_counts_as_unread_until_its_last_delta():
    async def test() -> None:
        stream = made()
        answer = asyncio.create_task(stream.whole(limit=60))
        parts = [delta(0, 5), delta(1, 6, "stop"), delta(0, 7, "length")]
        for part in parts:
            assert not stream.was_read
            stream.put(part)
            await asyncio.sleep(0)
        assert await answer == parts
        assert stream.was_read

    run(test)


def test_one_failed_sample_ends_the_wait_for_the_others():
    async def test() -> None:
        stream = made()
        stream.put(delta(0, 5, "error"))
        assert [one.finish_reason for one in await stream.whole(limit=60)] == ["error"]
        for broken, error in ((made(), StreamCancelled), (made(), RuntimeError)):
            answer = asyncio.create_task(broken.whole(limit=60))
            broken.put(delta(0, 5))
            await asyncio.sleep(0)
            if error is StreamCancelled:
                broken.cancel("client_left")
            else:
                broken.fail(RuntimeError("gone"))
            with pytest.raises(error):
                await answer
        with pytest.raises(StreamCancelled, match="timeout"):
            await made().whole(limit=0.01)

    run(test)


def test_a_stream_that_is_begun_anew_brings_only_what_comes_then():
    async def test() -> None:
        stream = made()
        told: list[str] = []
        stream.on_restart(lambda: told.append("anew"))
        for part in (delta(0, 5), delta(1, 6, "error")):
            stream.put(part)
        stream.restart()
        assert told == ["anew"]
        assert stream.remaining == 2
        again = [delta(0, 8, "stop"), delta(1, 9, "stop")]
        for part in again:
            stream.put(part)
        found = [batch async for batch in stream.batches(limit=60, heartbeat=60)]
        assert found == [again]
        with pytest.raises(AssertionError, match="read"):
            stream.restart()

    run(test)
