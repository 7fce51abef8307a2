"""The event loop: arrivals, steps and faults of engines that generate."""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from blocks._checks import check
from blocks.sched.admission import QueueFull, Unservable
from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.group_run import GroupRun
from blocks.sched.cluster_sim.generation.outcome import GenerationOutcome
from blocks.sched.cluster_sim.generation.pace import Pace
from blocks.sched.cluster_sim.generation.predict import predict
from blocks.sched.cluster_sim.generation.settings import (
    Admission,
    AllocatorFactory,
    EngineSettings,
)
from blocks.sched.cluster_sim.generation.shared_cores import SharedCores, StepsUnderWay
from blocks.sched.cluster_sim.generation.step_time import StepTime
from blocks.sched.cluster_sim.problem import FAILED, FINISHED, REJECTED, UNPLACED, Answers
from blocks.sched.cluster_sim.settings import Event, Overheads
from blocks.sched.placement.placement import Placement
from blocks.sched.profile.profile import Profile
from blocks.sched.request import State
from blocks.sched.workload.workload import Workload

STEP_ENDS, FAULT, ARRIVAL, BEGIN = range(4)
"""What comes first of one moment."""


class GenerationLoop:
    """One run; see ``simulate_generation``."""

    def __init__(
        self,
        placement: Placement,
        profiles: Mapping[str, Profile],
        workload: Workload,
        settings: EngineSettings,
        admission: Admission,
        overheads: Overheads,
        events: Sequence[Event],
        retry: bool,
        make_allocator: AllocatorFactory,
        cores: SharedCores | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.placement, self.workload = placement, workload
        self.settings, self.admission, self.overheads = settings, admission, overheads
        self.retry, self.make_allocator = retry, make_allocator
        if cores is None and pace is not None:  # whose ends the profile does not tell either
            cores = _of_their_own(placement)
        self.under_way = None if cores is None else StepsUnderWay(cores, placement)
        self.pace = pace
        self.now_s, self.clock_off_s = 0.0, 0.0
        self.answers = Answers.pending(workload.num_requests, len(placement.groups))
        self.first_token_s = np.full(workload.num_requests, np.nan)
        self.predicted_ttft_s = np.full(workload.num_requests, np.nan)
        self.num_preemptions = np.zeros(len(placement.groups), np.int64)
        self.due_s = workload.deadline_s.tolist()
        self.tpot_limit_s = workload.tpot_s.tolist()
        self.ttft_limit_s = workload.slo_s.tolist()
        self.index = {model: at for at, model in enumerate(workload.models)}
        self.step_times = self._step_times(profiles)
        self.groups = [
            GroupRun(g.configuration.pp, overheads.gap_of(g.configuration.pp), True, settings)
            for g in placement.groups
        ]
        self.heap: list[tuple[float, int, int, int, Engine | Event | None]] = []
        self.order = itertools.count()
        self._start_groups(events)
        for event in events:
            self._push(event.at_s, FAULT, event.group, event)
        self.hosts: list[list[int]] = [[] for _ in workload.models]
        for at, group in enumerate(placement.groups):
            for model in group.models:
                if model in self.index:
                    self.hosts[self.index[model]].append(at)

    # --- set-up ---------------------------------------------------------------------------------

    def _step_times(self, profiles: Mapping[str, Profile]) -> dict[tuple[int, int], StepTime]:
        found: dict[tuple[int, int], StepTime] = {}
        for at, group in enumerate(self.placement.groups):
            scale = 1.0 + self.overheads.per_stage * group.configuration.pp
            for model in group.models:
                if model not in self.index:
                    continue
                timing = profiles[model].timing(group.configuration)
                what = f"profile of {model} in {group.configuration}"
                check(bool(timing.decode), what, "prefill and decode times", "none")
                rooms = group.kv_tokens_of(model)
                check(rooms > 0, f"kv_tokens of {model} in group {at}", "room for tokens", rooms)
                found[at, self.index[model]] = StepTime(timing, scale)
        return found

    def _start_groups(self, events: Sequence[Event]) -> None:
        """Groups whose first event is ``up`` are down, models whose first is ``load`` not there."""
        for at, group in enumerate(self.groups):
            own = [e for e in sorted(events, key=lambda e: e.at_s) if e.group in (-1, at)]
            switches = [e.kind for e in own if e.kind in ("up", "down")]
            group.up = switches[:1] != ["up"]
            for model in self.placement.groups[at].models:
                loads = [e.kind for e in own if e.model in ("", model) and "load" in e.kind]
                if model in self.index and loads[:1] != ["load"]:
                    group.loaded.add(self.index[model])
            group.engines = self._new_engines(at)

    def _new_engines(self, at: int) -> list[Engine]:
        engines = []
        for model in self.placement.groups[at].models:
            if model not in self.index:
                continue
            kv_tokens = self.placement.groups[at].kv_tokens_of(model)
            num_blocks = kv_tokens // self.settings.block_size
            check(num_blocks > 0, f"kv_tokens of {model}", "at least a block", kv_tokens)
            number = self.index[model]
            engines.append(
                Engine(
                    number,
                    self.step_times[at, number],
                    self.settings,
                    num_blocks,
                    self.make_allocator,
                    lambda: self.now_s + self.clock_off_s,
                )
            )
        return engines

    # --- events ---------------------------------------------------------------------------------

    def _push(self, at_s: float, kind: int, at: int, what: Engine | Event | None = None) -> None:
        heapq.heappush(self.heap, (at_s, kind, next(self.order), at, what))

    def run(self) -> GenerationOutcome:
        """Everything up to the last answer."""
        arrivals = self.workload.arrival_s.tolist()
        request = 0
        while self.heap or request < len(arrivals):
            if request < len(arrivals) and (
                not self.heap or (arrivals[request], ARRIVAL) < self.heap[0][:2]
            ):
                self.now_s = arrivals[request]
                self._dispatch(request)
                request += 1
                continue
            self.now_s, _, _, at, what = heapq.heappop(self.heap)
            if isinstance(what, Engine):
                self._end_step(at, what)
            elif what is not None:
                self._happen(what)
            else:
                self._begin_step(at)
        return self._outcome()

    def _outcome(self) -> GenerationOutcome:
        for at, group in enumerate(self.groups):
            self.answers.busy_s[at] = group.work_s
            self._count_preemptions(at)
        answers = self.answers
        return GenerationOutcome(
            self.workload,
            self.placement,
            answers.status,
            answers.answered_s,
            self.first_token_s,
            self.predicted_ttft_s,
            answers.group,
            answers.busy_s,
            self.num_preemptions,
        )

    def _answer(self, request: int, status: int, at: int) -> None:
        self.answers.status[request] = status
        self.answers.answered_s[request] = self.now_s
        self.answers.group[request] = at

    # --- requests -------------------------------------------------------------------------------

    def _dispatch(self, request: int) -> None:
        """Send a request to the engine that is predicted to answer first of those that keep its
        limits, the one with the fewest requests where two are alike; or refuse it."""
        workload, admission = self.workload, self.admission
        model, prompt_len = int(workload.model[request]), int(workload.prompt_len[request])
        beside_s = self.now_s - float(workload.arrival_s[request]) + self.overheads.request_s
        ttft_limit_s = self.ttft_limit_s[request] * admission.slack
        tpot_limit_s = self.tpot_limit_s[request] * admission.slack
        best: tuple[tuple[bool, float, int], int, Engine] | None = None
        for at in self.hosts[model]:
            group = self.groups[at]
            if not group.up or model not in group.loaded:
                continue
            for engine in group.engines:
                if engine.model == model:
                    stands = engine.stands()
                    ttft_s, tpot_s = predict(
                        stands,
                        engine.step_time,
                        self.settings,
                        prompt_len,
                        busy_s=group.busy_s(engine, self.now_s),
                        others_s=group.others_s(engine),
                    )
                    ttft_s += beside_s
                    late = admission.ttft and ttft_s > ttft_limit_s
                    slow = admission.tpot and tpot_s > tpot_limit_s
                    rank = late or slow, ttft_s, stands.num_live
                    if best is None or rank < best[0]:
                        best = rank, at, engine
        if best is None:
            self._answer(request, UNPLACED, -1)
            return
        (refused, ttft_s, _), at, engine = best
        self.predicted_ttft_s[request] = ttft_s
        if refused:
            self._answer(request, REJECTED, at)
            return
        try:
            engine.add(request, prompt_len, int(workload.output_len[request]))
        except (Unservable, QueueFull):
            self._answer(request, REJECTED, at)
            return
        self._wake(at)

    # --- steps ----------------------------------------------------------------------------------

    def _wake(self, at: int) -> None:
        """Plan the next step of a group for when it may begin."""
        group = self.groups[at]
        at_s = group.begins_s(self.now_s)
        if group.wakes_s is None or at_s < group.wakes_s:
            group.wakes_s = at_s
            self._push(at_s, BEGIN, at)

    def _begin_step(self, at: int) -> None:
        group = self.groups[at]
        if group.wakes_s != self.now_s:
            return  # planned anew meanwhile
        group.wakes_s = None
        if not group.up:
            return
        due = self._due if self.settings.turns == "due" else None
        engine = group.begin_step(self.now_s, due)
        if engine is not None:
            if self.under_way is None:
                self._push(engine.free_s, STEP_ENDS, at, engine)
            else:
                engine.free_s = math.inf  # until it is planned
                stage_s = group.stage_s
                if self.pace is not None:
                    factor = self.pace(at, self.now_s)
                    check(0 < factor < math.inf, f"pace of group {at}", "above 0", factor)
                    stage_s = tuple(factor * seconds for seconds in stage_s)
                    group.work_s += sum(stage_s) - sum(group.stage_s)
                self.under_way.begin(at, stage_s, self.now_s)
                self._plan_ends()
            if group.has_more():
                self._wake(at)

    def _due(self, engine: Engine) -> float:
        """When the most urgent of an engine's next tokens is due."""
        least = math.inf
        for request, sequence in engine.live.items():
            if sequence.state is State.DECODING:
                begun_s = float(self.first_token_s[request])
                due_s = begun_s + sequence.num_output * self.tpot_limit_s[request]
            else:
                due_s = self.due_s[request]
            least = min(least, due_s)
        return least

    def _plan_ends(self) -> None:
        """Somebody has begun or ended on shared cores: everybody's end is another."""
        assert self.under_way is not None
        for at, ends_s in self.under_way.ends():
            engine = next(e for e in self.groups[at].engines if e.in_flight)
            if engine.free_s != ends_s:
                engine.free_s = ends_s
                self._push(ends_s, STEP_ENDS, at, engine)

    def _end_step(self, at: int, engine: Engine) -> None:
        if engine not in self.groups[at].engines:
            return  # the group stopped meanwhile
        if self.under_way is not None:
            if not engine.in_flight or engine.free_s != self.now_s:
                return  # planned anew meanwhile
            over = self.under_way.through(at, self.now_s)
            self._plan_ends()
            if not over:
                return
            group = self.groups[at]
            group.clock = [self.now_s + group.gap_s] * len(group.clock)
        ahead = not self.settings.overlap and engine.num_lanes > 1 and len(engine.in_flight) == 1
        if self.under_way is not None or ahead:
            engine.last_step_s = self.now_s - engine.sent_s[0]  # as its group tells
        gained, over = engine.end()
        told_s = self.now_s + self.overheads.request_s
        for request in gained:
            if math.isnan(self.first_token_s[request]):
                self.first_token_s[request] = told_s
        for request in over:
            self._answer(request, FINISHED, at)
            self.answers.answered_s[request] = told_s
        self._wake(at)

    # --- faults ---------------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        if event.kind == "clock":
            self.clock_off_s += event.seconds
            return
        for at in range(len(self.groups)) if event.group < 0 else [event.group]:
            group = self.groups[at]
            if event.kind == "down" and group.up:
                self._stop(at)
            elif event.kind == "up" and not group.up:
                group.up = True
                group.clock = [self.now_s] * len(group.clock)
            elif event.kind in ("load", "unload"):
                names = [event.model] if event.model else self.placement.groups[at].models
                for name in names:
                    if name in self.index and name in self.placement.groups[at].models:
                        change = group.loaded.add if event.kind == "load" else group.loaded.discard
                        change(self.index[name])

    def _stop(self, at: int) -> None:
        """A group stops: its engines lose everything, what they had is asked again elsewhere."""
        group = self.groups[at]
        group.up = False
        lost = sorted(request for engine in group.engines for request in engine.live)
        self._count_preemptions(at)
        group.engines = self._new_engines(at)
        group.wakes_s = None
        if self.under_way is not None:
            self.under_way.drop(at, self.now_s)
            self._plan_ends()
        for request in lost:
            self.first_token_s[request] = math.nan
            if self.retry:
                self._dispatch(request)
            else:
                self._answer(request, FAILED, at)

    def _count_preemptions(self, at: int) -> None:
        counted = [engine.scheduler.counters.num_preemptions for engine in self.groups[at].engines]
        self.num_preemptions[at] += sum(counted)


def _of_their_own(placement: Placement) -> SharedCores:
    """A core for every device."""
    most = max((device for group in placement.groups for device in group.devices), default=0)
    return SharedCores(tuple(range(most + 1)))
