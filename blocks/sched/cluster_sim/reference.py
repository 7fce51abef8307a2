"""The event loop in plain Python: the specification of what a simulation answers.

Requests come one by one, in order of arrival, faults before the requests of their moment. Without
batching a request is taken or refused as it comes: stages serve first come, first served, so that
the moments at which it would leave each of them are known. With batching it waits in its group,
and each time the first stage is free the group launches a batch of the model whose head came
first. Launches of a moment follow its arrivals.
"""

import collections
from typing import NamedTuple

from blocks.sched.cluster_sim.problem import (
    FAILED,
    FINISHED,
    REJECTED,
    UNPLACED,
    Answers,
    Problem,
)
from blocks.sched.cluster_sim.settings import DISPATCH, KINDS

NEVER = float("inf")


class Taken(NamedTuple):
    """A request on its way through the stages: when it is through, and its stage seconds."""

    request: int
    done_s: float
    work_s: float


class Waiting(NamedTuple):
    """A request in a batching group's queue: its turn in the group, and since when."""

    turn: int
    since_s: float
    request: int


class GroupState:
    """What a group is about.

    clock: for each stage, from when on it is free.
    taken: requests on their way, by the time they are through.
    queues: for each replica in the group those that wait for a launch; empty without batching.
    """

    def __init__(self, num_stages: int, replicas: list[int], up: bool) -> None:
        self.clock = [0.0] * num_stages
        self.taken: collections.deque[Taken] = collections.deque()
        self.queues = {replica: collections.deque[Waiting]() for replica in replicas}
        self.num_waiting = 0
        self.next_turn = 0
        self.up = up
        self.error_s, self.error_until_s = 0.0, 0.0
        self.busy_s = 0.0

    def forget_done(self, now_s: float) -> None:
        """Drop those that are through."""
        while self.taken and self.taken[0].done_s <= now_s:
            self.taken.popleft()

    def estimate_error_s(self, now_s: float) -> float:
        """How far estimates are off, after the clock jumped."""
        return self.error_s if now_s < self.error_until_s else 0.0


class ReferenceLoop:
    """One run over a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.arrival_s = problem.arrival_s.tolist()
        self.deadline_s = problem.deadline_s.tolist()
        self.stage_s = problem.stage_s.tolist()
        self.dispatch_by = DISPATCH[problem.dispatch]
        count = len(problem.num_stages)
        hosted: list[list[int]] = [[] for _ in range(count)]
        for replica, group in enumerate(problem.replica_group.tolist()):
            hosted[group].append(replica)
        self.groups = [
            GroupState(stages, replicas, bool(up))
            for stages, replicas, up in zip(
                problem.num_stages.tolist(), hosted, problem.up.tolist(), strict=True
            )
        ]
        self.gap_s = problem.gap_s.tolist()
        self.loaded = [bool(one) for one in problem.loaded.tolist()]
        self.answers = Answers.pending(len(self.arrival_s), count)

    def run(self) -> Answers:
        """Everything up to the last answer."""
        next_event, models = 0, self.problem.model.tolist()
        event_s = self.problem.event_s.tolist()
        for request, now_s in enumerate(self.arrival_s):
            while next_event < len(event_s) and event_s[next_event] <= now_s:
                self._happen(next_event)
                next_event += 1
            self._dispatch(request, models[request], now_s)
        for event in range(next_event, len(event_s)):
            self._happen(event)
        for index, group in enumerate(self.groups):
            self._launch_until(index, NEVER)
            self.answers.busy_s[index] = group.busy_s
        return self.answers

    # --- requests -------------------------------------------------------------------------------

    def _dispatch(self, request: int, model: int, now_s: float) -> None:
        """Send a request to a group of its model, which takes it, refuses it or lets it wait."""
        first, stop = self.problem.model_first[model], self.problem.model_first[model + 1]
        best, least = -1, NEVER
        for replica in range(first, stop):
            index = int(self.problem.replica_group[replica])
            if self.groups[index].up and self.loaded[replica]:
                load = self._load(replica, index, now_s)
                if best < 0 or load < least:
                    best, least = replica, load
        if best < 0:
            self._answer(request, UNPLACED, now_s, -1)
            return
        index = int(self.problem.replica_group[best])
        if self.problem.batching:
            group = self.groups[index]
            group.queues[best].append(Waiting(group.next_turn, now_s, request))
            group.next_turn += 1
            group.num_waiting += 1
            return
        size = int(self.problem.size_first[best])
        if self._too_late(index, size, now_s, request):
            self._answer(request, REJECTED, now_s, index)
        else:
            self._take([request], index, size, now_s)

    def _load(self, replica: int, index: int, now_s: float) -> float:
        group = self.groups[index]
        if self.problem.batching:
            self._launch_until(index, now_s)
        if self.dispatch_by == "shortest_queue":
            group.forget_done(now_s)
            return float(len(group.taken) + group.num_waiting)
        error_s = group.estimate_error_s(now_s)
        if self.dispatch_by == "least_clock":
            return group.clock[-1] + error_s
        return self._through(index, int(self.problem.size_first[replica]), now_s) + error_s

    def _through(self, index: int, size: int, now_s: float) -> float:
        """When a batch begun now would leave the last stage."""
        first, at_s = int(self.problem.stage_first[size]), now_s
        for stage, free_s in enumerate(self.groups[index].clock):
            at_s = max(at_s, free_s) + self.stage_s[first + stage]
        return at_s

    def _too_late(self, index: int, size: int, now_s: float, request: int) -> bool:
        error_s = self.groups[index].estimate_error_s(now_s)
        answered_s = self._through(index, size, now_s) + self.problem.request_s + error_s
        return self.problem.admit and not answered_s <= self.deadline_s[request]

    def _take(self, requests: list[int], index: int, size: int, now_s: float) -> None:
        """Let a batch through the stages; noise is that of its first request."""
        group, gap_s = self.groups[index], self.gap_s[index]
        first, at_s, work_s = int(self.problem.stage_first[size]), now_s, 0.0
        for stage, free_s in enumerate(group.clock):
            stage_s = self.stage_s[first + stage]
            if self.problem.noise.size:
                stage_s = stage_s * float(self.problem.noise[requests[0], stage])
            at_s = max(at_s, free_s) + stage_s
            group.clock[stage] = at_s + gap_s
            work_s += stage_s
        group.busy_s += work_s
        group.forget_done(now_s)
        for request in requests:
            group.taken.append(Taken(request, at_s, work_s))
            self._answer(request, FINISHED, at_s + self.problem.request_s, index)
            work_s = 0.0  # counted once for the batch

    def _answer(self, request: int, status: int, at_s: float, index: int) -> None:
        self.answers.status[request] = status
        self.answers.answered_s[request] = at_s
        self.answers.group[request] = index

    # --- batching -------------------------------------------------------------------------------

    def _launch_until(self, index: int, until_s: float) -> None:
        """All launches of a group before ``until_s``."""
        group = self.groups[index]
        while group.num_waiting:
            replica = min(
                (replica for replica, queue in group.queues.items() if queue),
                key=lambda replica: group.queues[replica][0].turn,
            )
            queue = group.queues[replica]
            now_s = max(group.clock[0], queue[0].since_s)
            if not now_s < until_s:
                return
            size = self._choose_size(index, replica, len(queue), queue[0].request, now_s)
            if size < 0:
                self._answer(queue.popleft().request, REJECTED, now_s, index)
                group.num_waiting -= 1
                continue
            batch = [queue.popleft().request for _ in range(int(self.problem.sizes[size]))]
            group.num_waiting -= len(batch)
            self._take(batch, index, size, now_s)

    def _choose_size(
        self, index: int, replica: int, num_waiting: int, head: int, now_s: float
    ) -> int:
        """The largest batch that can be filled and meets the head's deadline; -1 for none."""
        first, stop = self.problem.size_first[replica], self.problem.size_first[replica + 1]
        for size in reversed(range(first, stop)):
            fills = self.problem.sizes[size] <= num_waiting
            if fills and not self._too_late(index, size, now_s, head):
                return size
        return -1

    # --- faults ---------------------------------------------------------------------------------

    def _happen(self, event: int) -> None:
        problem = self.problem
        kind, at_s = KINDS[problem.event_kind[event]], float(problem.event_s[event])
        index = int(problem.event_group[event])
        group = self.groups[index]
        self._launch_until(index, at_s)
        if kind == "down" and group.up:
            self._stop(index, at_s)
        elif kind == "up" and not group.up:
            group.up = True
            group.clock = [at_s] * len(group.clock)
            group.error_until_s = 0.0
        elif kind == "clock":
            group.error_s = float(problem.event_seconds[event])
            group.error_until_s = group.clock[-1]
        elif kind in ("load", "unload"):
            chosen = int(problem.event_replica[event])
            for replica in group.queues if chosen < 0 else [chosen]:
                self.loaded[replica] = kind == "load"

    def _stop(self, index: int, at_s: float) -> None:
        """A group stops: what it has not finished is asked again elsewhere, or fails."""
        group = self.groups[index]
        group.up = False
        group.forget_done(at_s)
        lost: list[int] = []
        for taken in group.taken:
            group.busy_s -= taken.work_s
            lost.append(taken.request)
        for queue in group.queues.values():
            lost += [waiting.request for waiting in queue]
            queue.clear()
        group.taken.clear()
        group.num_waiting = 0
        for request in sorted(lost):
            if self.problem.retry:
                self._dispatch(request, int(self.problem.model[request]), at_s)
            else:
                self._answer(request, FAILED, at_s, index)


def run_reference(problem: Problem) -> Answers:
    """What becomes of every request."""
    return ReferenceLoop(problem).run()
