"""A profile timed from outside: by when tokens of real groups come back."""

import asyncio
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from blocks._checks import check
from blocks.sched.profile import Configuration, Profile
from recipes.model import read_config
from recipes.place.group.spec import GroupSpec
from recipes.place.measure.measured_timing import Point, measured, timing_of
from recipes.place.measure.points import Points
from recipes.place.measure.port import Port
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.sampling_params import SamplingParams

SECOND_S = 0.002
"""After the first of two prompts, the second is sent: the first one's step is under way then."""


class GroupTimer:
    """Steps of one model on a group that has nothing else to do.

    Times are from one step's tokens to the next one's, so that what the group does beside computing
    is in them.
    """

    def __init__(self, port: Port, model: str, vocab_size: int, name: str) -> None:
        self._port, self._model, self._vocab_size = port, model, vocab_size
        self._ids = (f"{name}-{at}" for at in itertools.count())
        self._draws = random.Random()  # no prompt may be one that the group has seen
        self._loop = asyncio.get_running_loop()
        self.way_s: list[float] = []

    async def prefill_s(self, num_tokens: int) -> float:
        """Seconds of a step over one prompt: it waits behind another such step.

        What the step before took beyond that, from asking to its token, goes to ``way_s``.
        """
        while True:
            sent_s = self._loop.time()
            first = asyncio.create_task(self._ask([self._job(num_tokens, 1)]))
            await asyncio.sleep(SECOND_S)
            second = asyncio.create_task(self._ask([self._job(num_tokens, 1)]))
            (first_s,), (second_s,) = await first, await second
            if second_s > first_s:  # else one step had both
                self.way_s.append(first_s - sent_s - (second_s - first_s))
                return second_s - first_s

    async def decode_s(self, batch_size: int, context_len: int, num_steps: int) -> list[float]:
        """Seconds of steps that give each of ``batch_size`` sequences a token; their contexts are
        ``context_len`` on average."""
        prompt_len = max(1, context_len - num_steps // 2)
        jobs = [self._job(prompt_len, num_steps + 2) for _ in range(batch_size)]
        came = await self._ask(jobs)
        return [after - before for before, after in itertools.pairwise(came)][-num_steps - 1 : -1]

    def _job(self, prompt_len: int, max_tokens: int) -> Job:
        last = self._vocab_size - 1
        prompt = [self._draws.randint(0, last) for _ in range(prompt_len)]
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        return Job(next(self._ids), prompt, params)

    async def _ask(self, jobs: Sequence[Job]) -> list[float]:
        """Send jobs together and wait for their end; when the last one's tokens came."""
        stream = await self._port.submit(self._model, jobs, ttft_s=60.0, tpot_s=60.0)
        came: list[float] = []
        over: asyncio.Future[None] = self._loop.create_future()

        def observe(delta: Delta) -> None:
            if delta.error is not None and not over.done():
                over.set_exception(RuntimeError(f"a timed step failed: {delta.error}"))
            if delta.request_id == jobs[-1].request_id:
                came.append(self._loop.time())
            if stream.done and not over.done():
                over.set_result(None)

        stream.observe(observe)
        await over
        return came


async def measure_group_profile(
    folder: str | Path,
    model: str,
    configuration: tuple[int, int],
    ports: Sequence[Port],
    limits: GroupSpec,
    *,
    points: Points,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Profile, float]:
    """Time a model on the groups that host it, round by round in turn.

    Args:
        folder: of the model. model: its name on the groups and in the profile.
        configuration: (tp, pp) of the groups; with several stages ``limits.pp_batches`` is 1.
        ports: the groups, idle.
        limits: of the groups' engines.
        points: steps to time; decode batches whose prompts exceed the token budget are not decoding
            together from their first token on, so keep them below.

    Returns:
        The profile, and the median seconds that a lone request takes beside its steps.

    Raises:
        GroupLost, RuntimeError: a group that fails.
    """
    check(bool(ports), "ports", f"at least one group with {model}", "none")
    config, one = read_config(folder), Configuration(*configuration).checked()
    alone = one.pp == 1 or limits.pp_batches == 1
    check(alone, "pp_batches", "1: steps that follow one another", limits.pp_batches)
    limit = min(limits.max_model_len or config.max_positions, config.max_positions)
    points = points.within(limit, limits.token_budget, limits.max_num_seqs)
    timers = [
        GroupTimer(port, model, config.vocab_size, f"{model}-{at}-{random.random()}")
        for at, port in enumerate(ports)
    ]
    seconds: dict[Point, list[float]] = {}
    visits = [(tokens, 0) for tokens in points.prefill] + list(points.decodes())
    for turn in range(-1, points.rounds):  # one round before those that count
        timer = timers[turn % len(timers)]
        for at, (first, context_len) in enumerate(visits):
            if context_len:
                taken = await timer.decode_s(first, context_len, points.decode_steps)
            else:
                taken = [await timer.prefill_s(first)]
            if turn >= 0:
                seconds.setdefault((first, context_len), []).extend(taken)
                if progress is not None:
                    progress(turn * len(visits) + at + 1, points.rounds * len(visits))
    found = {point: statistics.median(taken) for point, taken in seconds.items()}
    how = f"timed from outside on {len(ports)} groups, medians of {points.rounds} rounds in turn"
    profile = measured(model, limits, [timing_of(config, limits, one, points, found)], how)
    way_s = statistics.median(itertools.chain.from_iterable(timer.way_s for timer in timers))
    return profile, max(0.0, way_s)
