"""How much slower groups are beside one another, measured on idle ones."""

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Sequence

import numpy as np

from recipes.place.measure.port import Port
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.sampling_params import SamplingParams
from recipes.serve.stream import Stream


@dataclasses.dataclass(frozen=True)
class Probe:
    """A model on a group that is to be asked one thing at a time.

    port: the group. model: its name there.
    """

    port: Port
    model: str


class Answers:
    """One request's moments: sent, and each token back."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.sent_s = self._loop.time()
        self.came_s: list[float] = []
        self.over = asyncio.Event()

    def came(self, delta: Delta) -> None:
        if delta.error is not None:
            raise RuntimeError(delta.error)
        self.came_s.append(self._loop.time())
        if delta.finish_reason is not None:
            self.over.set()


_ids = itertools.count()


async def ask(probe: Probe, prompt_len: int, num_tokens: int, rng: random.Random) -> Answers:
    """Send one request and wait for its end."""
    prompt = [rng.randrange(1, 300) for _ in range(prompt_len)]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    job = Job(f"probe-{next(_ids)}", prompt, params)
    answers = Answers()
    stream: Stream = await probe.port.submit(probe.model, [job], ttft_s=10.0, tpot_s=10.0)
    stream.observe(answers.came)
    await answers.over.wait()
    return answers


async def measure_speed(
    probes: Sequence[Probe], *, rounds: int = 30, prompt_len: int = 160, num_tokens: int = 2
) -> tuple[float, ...]:
    """How fast each of 1, 2, ... groups on cores of their own goes while all of them are at work,
    against one alone: ``SharedCores(speed=)``.

    The first probe is asked alone and beside the others, in turn; what counts is the ratio of the
    lower quartiles of its times, for whatever else runs on the machine only makes them longer.
    Whoever asks runs on these cores too: prompts are long and answers short, so that it has no more
    to do than usual.
    """
    rng = random.Random()  # a prompt seen before would be found in the cache

    async def beside(others: Sequence[Probe]) -> float:
        over = asyncio.Event()
        busy = [
            asyncio.create_task(_keep_busy(one, prompt_len, num_tokens, over)) for one in others
        ]
        await asyncio.sleep(0.02 if busy else 0)
        answers = await ask(probes[0], prompt_len, num_tokens, rng)
        over.set()
        await asyncio.gather(*busy)
        return answers.came_s[-1] - answers.sent_s

    took: dict[int, list[float]] = {count: [] for count in range(1, len(probes) + 1)}
    for turn in range(rounds + 1):
        for count, found in took.items():
            seconds = await beside(probes[1:count])
            if turn:
                found.append(seconds)
    usual_s = [float(np.quantile(found, 0.25)) for found in took.values()]
    return tuple(min(1.0, usual_s[0] / seconds) for seconds in usual_s)


async def _keep_busy(probe: Probe, prompt_len: int, num_tokens: int, over: asyncio.Event) -> None:
    rng = random.Random()
    while not over.is_set():
        await ask(probe, prompt_len, num_tokens, rng)
