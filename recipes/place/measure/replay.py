"""``replay``: a workload, played to groups that serve."""

import asyncio
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from blocks._checks import check
from blocks.sched import QueueFull
from blocks.sched.cluster_sim import FINISHED, REJECTED, UNPLACED
from blocks.sched.cluster_sim.generation import Admission, EngineSettings, GenerationOutcome
from blocks.sched.cluster_sim.problem import PENDING
from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.fleet.router import Refusal, Router
from recipes.place.fleet.slo import Slo
from recipes.place.fleet.told_state import told_state
from recipes.place.measure.port import Port
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.sampling_params import SamplingParams

LEAD_S = 0.2
"""Between the start of a replay and the workload's zero."""


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
        request_s: float,
        vocab_size: int,
        seed: int,
    ) -> None:
        check(len(ports) == len(placement.groups), "ports", "one for each group", len(ports))
        check(not settings.overlap, "overlap", "False: stages are one engine's at a time", True)
        self.workload, self.placement, self.ports = workload, placement, ports
        self.admission, self.loop = admission, asyncio.get_running_loop()
        self.group_at = {group.devices: at for at, group in enumerate(placement.groups)}
        self.router = Router(settings, admission.slack, request_s=request_s)
        self.router.look = told_state(
            self.router, lambda devices: ports[self.group_at[devices]], self.loop.time
        )
        for group in placement.groups:
            for model in group.models:
                self.router.open(
                    group.devices,
                    model,
                    profiles[model].timing(group.configuration),
                    kv_tokens=group.kv_tokens_of(model),
                    max_model_len=settings.max_model_len,
                    now_s=0.0,
                )
        count = workload.num_requests
        self.status = np.full(count, PENDING, np.int8)
        self.answered_s = np.zeros(count)
        self.first_token_s, self.predicted_ttft_s = np.full(count, np.nan), np.full(count, np.nan)
        self.group = np.full(count, -1, np.int32)
        self.zero_s = 0.0
        self.num_pending = count
        self.all_answered = asyncio.Event()
        self.jobs = _jobs(workload, vocab_size, seed)
        self.asks: set[asyncio.Task[None]] = set()
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
            task = self.loop.create_task(self._ask(request))
            self.asks.add(task)
            task.add_done_callback(self.asks.discard)
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

    async def _ask(self, request: int) -> None:
        try:
            await self._send(request)
        except BaseException as error:
            self._give_up(error)

    async def _send(self, request: int) -> None:
        """As a request at the front door: to the replica that its router chooses, or refused."""
        job, workload = self.jobs[request], self.workload
        model = workload.models[int(workload.model[request])]
        arrival_s = float(workload.arrival_s[request])
        now_s = max(arrival_s, self._now_s())
        waited_s = now_s - arrival_s
        ttft_s, tpot_s = float(workload.slo_s[request]), float(workload.tpot_s[request])
        limits = Slo(
            ttft_s - waited_s if self.admission.ttft else math.inf,
            tpot_s if self.admission.tpot else math.inf,
        )
        prompt_len = len(job.prompt_tokens)
        total_len = prompt_len + int(workload.output_len[request])
        found = self.router.choose(model, prompt_len, limits, total_len=total_len)
        if found is None:
            self._answer(request, UNPLACED, -1, now_s)
            return
        at = self.group_at[found.seat.devices]
        assert found.prediction is not None, "profiles have times of every model"
        self.predicted_ttft_s[request] = found.prediction.ttft_s + waited_s
        if isinstance(found, Refusal):
            self._answer(request, REJECTED, at, now_s)
            return
        self.router.take(found.seat, job.request_id, prompt_len, 1, now_s)
        try:
            stream = await self.ports[at].submit(
                model,
                [job],
                ttft_s=ttft_s - waited_s,
                tpot_s=tpot_s,
                on_lost=lambda _, lost: self._give_up(lost),
            )
        except (QueueFull, ValueError):
            self.router.forget(job.request_id)
            self._answer(request, REJECTED, at, self._now_s())
        else:
            stream.observe(functools.partial(self._came, request, at))

    def _came(self, request: int, at: int, delta: Delta) -> None:
        if delta.error is not None:
            self._give_up(RuntimeError(f"request {request}: {delta.error}"))
            return
        now_s = self._now_s()
        if np.isnan(self.first_token_s[request]):
            self.first_token_s[request] = now_s
        if delta.finish_reason is not None:
            self.router.end(delta.request_id, delta.index)
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
    request_s: float = 0.0,
    vocab_size: int,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    begun: Callable[[float], object] | None = None,
) -> GenerationOutcome:
    """Play a workload to groups that serve; what became of every request.

    Requests are sent when they come, by the front door's own router with what the groups tell of
    themselves; to a group whose steps take the profile's times that is what ``simulate_generation``
    does with the same arguments. Times are the running loop's, from the moment a
    request should have come to the moment its tokens are back in this process. Answers have the
    lengths of the workload; what the models say does not matter.

    Args:
        ports: for each group of ``placement`` where its requests go; idle.
        profiles: what predictions go by.
        settings: of the groups' engines, with ``overlap=False``.
        request_s: what predictions add to steps.
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
        request_s,
        vocab_size,
        seed,
    )
    return await one.run(progress, begun)
