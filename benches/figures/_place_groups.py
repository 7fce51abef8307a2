"""Figures of groups: what it costs that an engine is in another process, and what faults do."""

import asyncio
import collections
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from benches.figures.row import Measured, Row
from recipes.place.group import GroupHandle
from recipes.serve import Job
from recipes.serve.async_engine import AsyncEngine, Stream
from tests.place.group.groups import collect, first_delta, running_group, save_models
from tests.place.group.storm import pid_of, run_storm
from tests.serve.models import tiny_decoder, tiny_engine
from tests.serve.test_engine import job

COMMAND = "python -m benches.figures --area place"
NUM_REQUESTS, NUM_TOKENS, NUM_RUNS = 64, 40, 5
SEEDS, NUM_FAULTS = range(10, 14), 12

Submit = Callable[[Sequence[Job]], Awaitable[Stream]]


def rows() -> Iterator[Row]:
    yield Row(
        "processor time of front door and group together over an engine in a thread of the front "
        f"door: a tiny model, {NUM_REQUESTS} requests of {NUM_TOKENS} tokens at once (in brackets: "
        "of the front door alone, a token)",
        "",
        COMMAND,
        _overhead,
    )
    yield Row(
        "a group is killed (signal 9) under traffic: until every one of its streams has ended",
        "<= 1 s",
        COMMAND,
        _noticed,
    )
    yield Row(
        "real groups killed, stopped, terminated, closed or unloaded at random under traffic: "
        "requests without exactly one answer, answers with other tokens, processes left",
        f"none in {len(SEEDS) * NUM_FAULTS} faults",
        COMMAND,
        _storms,
        nightly=True,
    )


def _overhead() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        ratios, token_s = asyncio.run(_compare(save_models(Path(folder), 0)[0]))
    ratio = statistics.median(ratios)
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    text = f"{ratio:.2f} x ({spread}; {statistics.median(token_s) * 1e6:.0f} us)"
    return Measured(text, None)


async def _compare(folder: Path) -> tuple[list[float], list[float]]:
    """Ratios of processor time, and the front door's own a token; a run of each in turns."""
    ratios, token_s = [], []
    engine = AsyncEngine(tiny_engine(tiny_decoder(seed=0), kv_bytes=1 << 21))
    engine.start()
    async with running_group(folder, kv_tokens=8192) as handle:
        for run in range(NUM_RUNS + 1):
            alone_s = time.process_time()
            await _ask_all(engine.submit, f"a{run}-")
            alone_s = time.process_time() - alone_s
            front_s, group_s = time.process_time(), _cpu_s(pid_of(handle))
            await _ask_all(lambda jobs: handle.submit(folder.name, jobs), f"b{run}-")
            front_s = time.process_time() - front_s
            group_s = _cpu_s(pid_of(handle)) - group_s
            if run:  # the first warms both up
                ratios.append((front_s + group_s) / alone_s)
                token_s.append(front_s / (NUM_REQUESTS * NUM_TOKENS))
    await engine.stop()
    return ratios, token_s


async def _ask_all(submit: Submit, name: str) -> None:
    async def one(at: int) -> None:
        prompt = [20 + at % 50, 3, 4, at % 9]
        asked = job(f"{name}{at}", prompt, max_tokens=NUM_TOKENS, ignore_eos=True)
        await collect(await submit([asked]))

    await asyncio.gather(*map(one, range(NUM_REQUESTS)))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return max(int(fields[0]), sum(int(task.read_text().split()[0]) for task in tasks)) / 1e9


def _noticed() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(_kill(save_models(Path(folder), 0)[0]))
    text = f"{statistics.median(seconds) * 1e3:.0f} ms (at most {max(seconds) * 1e3:.0f} ms)"
    return Measured(text, max(seconds) <= 1)


async def _kill(folder: Path) -> list[float]:
    seconds = []
    for _ in range(NUM_RUNS):
        async with running_group(folder) as handle:
            streams = [await _endless(handle, folder.name, at) for at in range(8)]
            await first_delta(streams[0])
            began_s = time.perf_counter()
            os.kill(pid_of(handle), signal.SIGKILL)
            ends = await asyncio.gather(*map(collect, streams), return_exceptions=True)
            seconds.append(time.perf_counter() - began_s)
            assert len(ends) == len(streams)
    return seconds


async def _endless(handle: GroupHandle, model: str, at: int) -> Stream:
    asked = job(f"r{at}", [20 + at, 3, 4], max_tokens=240, ignore_eos=True)
    return await handle.submit(model, [asked])


def _storms() -> Measured:
    faults: collections.Counter[str] = collections.Counter()
    ended: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        (model,) = save_models(Path(folder), 0)
        for seed in SEEDS:
            storm = asyncio.run(run_storm(model, seed, NUM_FAULTS))  # raises on a breach
            faults.update(storm.faults)
            ended.update(storm.ended.values())
    told = ", ".join(f"{count} {how}" for how, count in sorted(ended.items()))
    text = f"none in {faults.total()} faults, {ended.total()} requests ({told})"
    return Measured(text, faults.total() == len(SEEDS) * NUM_FAULTS)
