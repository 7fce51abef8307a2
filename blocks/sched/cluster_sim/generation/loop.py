"""The event loop: arrivals, steps and faults of engines that generate."""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence

from blocks._checks import check
from blocks.sched.admission import QueueFull, Unservable
from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.front_door import FrontDoor
from blocks.sched.cluster_sim.generation.hosting import Hosting
from blocks.sched.cluster_sim.generation.outcome import GenerationOutcome
from blocks.sched.cluster_sim.generation.pace import Pace
from blocks.sched.cluster_sim.generation.record import Record
from blocks.sched.cluster_sim.generation.settings import (
    Admission,
    AllocatorFactory,
    EngineSettings,
)
from blocks.sched.cluster_sim.generation.shared_cores import SharedCores, StepsUnderWay
from blocks.sched.cluster_sim.problem import FAILED, REJECTED, UNPLACED
from blocks.sched.cluster_sim.settings import Event, Overheads
from blocks.sched.placement.placement import Placement
from blocks.sched.profile.profile import Profile
from blocks.sched.workload.workload import Workload

STEP_ENDS, FAULT, ARRIVAL, BEGIN = range(4)
"""What comes first of one moment."""


class GenerationLoop:
    """One run; see ``simulate_generation``.

    Every group's next step is planned for when it may begin (``_wake``); a step that has begun is
    planned to end, which on shared cores is planned anew whenever another begins or ends.
    """

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
        self.workload, self.settings, self.overheads = workload, settings, overheads
        self.retry = retry
        if cores is None and pace is not None:  # whose ends the profile does not tell either
            cores = _of_their_own(placement)
        self.under_way = None if cores is None else StepsUnderWay(cores, placement)
        self.pace = pace
        self.now_s, self.clock_off_s = 0.0, 0.0
        self.record = Record(workload, placement)
        self.hosting = Hosting(
            placement,
            profiles,
            workload.models,
            settings,
            overheads,
            make_allocator,
            lambda: self.now_s + self.clock_off_s,
        )
        self.groups = self.hosting.groups(events)
        self.door = FrontDoor(
            workload, self.groups, self.hosting.hosts, settings, admission, overheads.request_s
        )
        self.heap: list[tuple[float, int, int, int, Engine | Event | None]] = []
        self.order = itertools.count()
        for event in events:
            self._push(event.at_s, FAULT, event.group, event)

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
        return self.record.outcome(self.groups)

    # --- requests -------------------------------------------------------------------------------

    def _dispatch(self, request: int) -> None:
        """Send a request to the best engine, or refuse it."""
        choice = self.door.choose(request, self.now_s)
        if choice is None:
            self.record.answer(request, UNPLACED, -1, self.now_s)
            return
        self.record.predicted(request, choice.ttft_s)
        workload, taken = self.workload, not choice.refused
        if taken:
            prompt_len, output_len = workload.prompt_len[request], workload.output_len[request]
            try:
                choice.engine.add(request, int(prompt_len), int(output_len))
            except (Unservable, QueueFull):
                taken = False
        if taken:
            self._wake(choice.at)
        else:
            self.record.answer(request, REJECTED, choice.at, self.now_s)

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
        due = self.record.due_s if self.settings.turns == "due" else None
        engine = group.begin_step(self.now_s, due)
        if engine is None:
            return
        if self.under_way is None:
            self._push(engine.free_s, STEP_ENDS, at, engine)
        else:
            engine.free_s = math.inf  # until it is planned
            self.under_way.begin(at, self._paced(at), self.now_s)
            self._plan_ends()
        if group.has_more():
            self._wake(at)

    def _paced(self, at: int) -> tuple[float, ...]:
        """Seconds that the stages take for the step begun last, on a machine of changing speed."""
        group = self.groups[at]
        if self.pace is None:
            return group.stage_s
        factor = self.pace(at, self.now_s)
        check(0 < factor < math.inf, f"pace of group {at}", "above 0", factor)
        stage_s = tuple(factor * seconds for seconds in group.stage_s)
        group.work_s += sum(stage_s) - sum(group.stage_s)
        return stage_s

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
        self.record.gained(gained, told_s)
        self.record.finish(over, at, told_s)
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
            elif event.kind == "load":
                group.loaded.update(self.hosting.named(at, event.model))
            elif event.kind == "unload":
                group.loaded.difference_update(self.hosting.named(at, event.model))

    def _stop(self, at: int) -> None:
        """A group stops: its engines lose everything, what they had is asked again elsewhere."""
        group = self.groups[at]
        group.up = False
        lost = sorted(request for engine in group.engines for request in engine.live)
        self.record.end_engines(at, group.engines)
        group.engines = self.hosting.engines(at)
        group.wakes_s = None
        if self.under_way is not None:
            self.under_way.drop(at, self.now_s)
            self._plan_ends()
        self.record.lose(lost)
        for request in lost:
            if self.retry:
                self._dispatch(request)
            else:
                self.record.answer(request, FAILED, at, self.now_s)


def _of_their_own(placement: Placement) -> SharedCores:
    """A core for every device."""
    most = max((device for group in placement.groups for device in group.devices), default=0)
    return SharedCores(tuple(range(most + 1)))
