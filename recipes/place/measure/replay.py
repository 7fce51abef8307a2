"""``replay``: a workload, played to groups that serve."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from blocks._checks import check
from blocks.sched import QueueFull
from blocks.sched.cluster_sim import FINISHED, REJECTED, UNPLACED, Overheads
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    GenerationOutcome,
    StepTime,
)
from blocks.sched.cluster_sim.problem import PENDING
from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.measure.watch import Sent, Watch
from recipes.serve.async_engine import Stream
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.sampling_params import SamplingParams

LEAD_S = 0.2
"""Between the start of a replay and the workload's zero."""


class Port(Protocol):
    """A group that requests can be sent to; ``GroupHandle`` meets it."""

    async def submit(
        self, model: str, jobs: Sequence[Job], *, ttft_s: float, tpot_s: float
    ) -> Stream: ...


class Replay:
    """One run; see ``replay``."""

    def __init__(
        self,
        workload: Workload,
        placement: Placement,
        ports: Sequence[Port],
        profiles: Mapping[str, Profile],
        settings: EngineSettings,
        admission: Admission,
        overheads: Overheads,
        vocab_size: int,
        seed: int,
    ) -> None:
        check(len(ports) == len(placement.groups), "ports", "one for each group", len(ports))
        check(not settings.overlap, "overlap", "False: a group computes one step at a time", True)
        self.workload, self.placement, self.ports = workload, placement, ports
        self.admission, self.overheads = admission, overheads
        self.loop = asyncio.get_running_loop()
        self.watches = [
            Watch(
                {
                    model: (
                        StepTime(profiles[model].timing(group.configuration)),
                        group.kv_tokens_of(model) // settings.block_size,
                    )
                    for model in group.models
                },
                settings,
                overheads.gap_of(group.configuration.pp),
                self.loop,
            )
            for group in placement.groups
        ]
        self.hosts = [
            [at for at, group in enumerate(placement.groups) if model in group.models]
            for model in workload.models
        ]
        count = workload.num_requests
        self.status = np.full(count, PENDING, np.int8)
        self.answered_s = np.zeros(count)
        self.first_token_s, self.predicted_ttft_s = np.full(count, np.nan), np.full(count, np.nan)
        self.group = np.full(count, -1, np.int32)
        self.zero_s = 0.0
        self.num_pending = count
        self.all_answered = asyncio.Event()
        self.jobs = _jobs(workload, vocab_size, seed)
        self.sends: set[asyncio.Task[None]] = set()
        self.error: BaseException | None = None

    async def run(
        self,
        progress: Callable[[int, int], object] | None,
        begun: Callable[[float], object] | None,
    ) -> GenerationOutcome:
        self.zero_s = self.loop.time() + LEAD_S
        if begun is not None:
            begun(self.zero_s)
        arrivals = self.workload.arrival_s.tolist()
        for request, arrival_s in enumerate(arrivals):
            await self._until(self.zero_s + arrival_s)
            self._dispatch(request)
            if progress is not None:
                progress(request + 1, len(arrivals))
        if arrivals:
            await self.all_answered.wait()
        if self.error is not None:
            raise self.error
        return GenerationOutcome(
            self.workload,
            self.placement,
            self.status,
            self.answered_s,
            self.first_token_s,
            self.predicted_ttft_s,
            self.group,
            np.zeros(len(self.ports)),
            np.zeros(len(self.ports), np.int64),
        )

    async def _until(self, at_s: float) -> None:
        future = self.loop.create_future()
        self.loop.call_at(at_s, _wake, future)
        await future

    def _now_s(self) -> float:
        return self.loop.time() - self.zero_s

    def _answer(self, request: int, status: int, group: int, at_s: float) -> None:
        self.status[request], self.group[request] = status, group
        self.answered_s[request] = at_s
        self.num_pending -= 1
        if not self.num_pending:
            self.all_answered.set()

    def _dispatch(self, request: int) -> None:
        """As ``simulate_generation``: to whoever is predicted to answer first, or refused."""
        workload = self.workload
        model = workload.models[int(workload.model[request])]
        prompt_len = int(workload.prompt_len[request])
        ttft_limit_s, tpot_limit_s = float(workload.slo_s[request]), float(workload.tpot_s[request])
        arrival_s = float(workload.arrival_s[request])
        best: tuple[float, float, int] | None = None
        for at in self.hosts[int(workload.model[request])]:
            ttft_s, tpot_s = self.watches[at].predict(model, prompt_len)
            if best is None or ttft_s < best[0]:
                best = ttft_s, tpot_s, at
        now_s = max(arrival_s, self._now_s())
        if best is None:
            self._answer(request, UNPLACED, -1, now_s)
            return
        ttft_s, tpot_s, at = best
        ttft_s += (now_s - arrival_s) + self.overheads.request_s
        self.predicted_ttft_s[request] = ttft_s
        slack = self.admission.slack
        late = self.admission.ttft and ttft_s > ttft_limit_s * slack
        slow = self.admission.tpot and tpot_s > tpot_limit_s * slack
        if late or slow:
            self._answer(request, REJECTED, at, now_s)
            return
        due_s = self.zero_s + arrival_s + ttft_limit_s
        self.watches[at].send(model, Sent(request, prompt_len, due_s, tpot_limit_s))
        task = self.loop.create_task(self._send(request, at, model, due_s))
        self.sends.add(task)
        task.add_done_callback(self.sends.discard)

    async def _send(self, request: int, at: int, model: str, due_s: float) -> None:
        tpot_s = float(self.workload.tpot_s[request])
        try:
            stream = await self.ports[at].submit(
                model, [self.jobs[request]], ttft_s=due_s - self.loop.time(), tpot_s=tpot_s
            )
        except (QueueFull, ValueError):
            self.watches[at].models[model].sent.pop(request, None)
            self._answer(request, REJECTED, at, self._now_s())
        except BaseException as error:
            self._give_up(error)
        else:
            stream.observe(functools.partial(self._came, request, at, model))

    def _came(self, request: int, at: int, model: str, delta: Delta) -> None:
        if delta.error is not None:
            self._give_up(RuntimeError(f"request {request}: {delta.error}"))
            return
        now_s = self._now_s()
        if np.isnan(self.first_token_s[request]):
            self.first_token_s[request] = now_s
        over = delta.finish_reason is not None
        self.watches[at].came(model, request, over)
        if over:
            self._answer(request, FINISHED, at, now_s)

    def _give_up(self, error: BaseException) -> None:
        self.error = self.error or error
        self.all_answered.set()


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _jobs(workload: Workload, vocab_size: int, seed: int) -> list[Job]:
    """Prompts of random tokens, no two alike, and answers of exactly the length asked for."""
    rng = np.random.default_rng(seed)
    found = []
    for request in range(workload.num_requests):
        prompt = rng.integers(0, vocab_size, int(workload.prompt_len[request])).tolist()
        length = int(workload.output_len[request])
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        found.append(Job(f"{seed}-{request}", prompt, params))
    return found


async def replay(
    workload: Workload,
    placement: Placement,
    ports: Sequence[Port],
    profiles: Mapping[str, Profile],
    *,
    settings: EngineSettings,
    admission: Admission | None = None,
    overheads: Overheads | None = None,
    vocab_size: int,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    begun: Callable[[float], object] | None = None,
) -> GenerationOutcome:
    """Play a workload to groups that serve; what became of every request.

    Requests are sent when they come, to the group and by the rules of admission of
    ``simulate_generation`` with the same arguments. Times are the running loop's, from the moment a
    request should have come to the moment its tokens are back in this process. Answers have the
    lengths of the workload; what the models say does not matter.

    Args:
        ports: for each group of ``placement`` where its requests go; idle.
        profiles: what predictions go by.
        settings: of the groups' engines, with ``overlap=False``.
        overheads: what predictions add.
        vocab_size: prompts are random tokens below it.
        seed: of the prompts; another one for every replay to the same groups.
        progress: told how many requests have come, and of how many.
        begun: told when the workload's zero is, on the loop's clock.

    Returns:
        An outcome without busy times and preemptions.

    Raises:
        GroupLost, RuntimeError: a group that did not answer.
    """
    one = Replay(
        workload,
        placement,
        ports,
        profiles,
        settings,
        admission or Admission(),
        (overheads or Overheads()).checked(),
        vocab_size,
        seed,
    )
    return await one.run(progress, begun)
