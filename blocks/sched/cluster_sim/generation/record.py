"""``Record``: what has become of every request so far."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from blocks.sched.cluster_sim.generation.engine import Engine
from blocks.sched.cluster_sim.generation.group_run import GroupRun
from blocks.sched.cluster_sim.generation.outcome import GenerationOutcome
from blocks.sched.cluster_sim.problem import FINISHED, Answers
from blocks.sched.placement.placement import Placement
from blocks.sched.request import State
from blocks.sched.workload.workload import Workload


class Record:
    """The first token and the answer of every request, and what groups did for them.

    A request that is asked again elsewhere has neither; it may be answered once.
    """

    def __init__(self, workload: Workload, placement: Placement) -> None:
        self._workload, self._placement = workload, placement
        self._answers = Answers.pending(workload.num_requests, len(placement.groups))
        self._first_token_s = np.full(workload.num_requests, np.nan)
        self._predicted_ttft_s = np.full(workload.num_requests, np.nan)
        self._num_preemptions = np.zeros(len(placement.groups), np.int64)
        self._due_s = workload.deadline_s.tolist()
        self._tpot_limit_s = workload.tpot_s.tolist()

    def predicted(self, request: int, ttft_s: float) -> None:
        """Seconds to the first token, as a request was sent or refused with."""
        self._predicted_ttft_s[request] = ttft_s

    def gained(self, requests: Iterable[int], told_s: float) -> None:
        """Requests got a token, maybe their first."""
        for request in requests:
            if math.isnan(self._first_token_s[request]):
                self._first_token_s[request] = told_s

    def answer(self, request: int, status: int, at: int, told_s: float) -> None:
        """The end of a request, in group ``at``; -1 where none was asked."""
        self._answers.status[request] = status
        self._answers.answered_s[request] = told_s
        self._answers.group[request] = at

    def finish(self, requests: Iterable[int], at: int, told_s: float) -> None:
        """Requests got their last token."""
        for request in requests:
            self.answer(request, FINISHED, at, told_s)

    def lose(self, requests: Iterable[int]) -> None:
        """What requests got so far is gone with their group."""
        for request in requests:
            self._first_token_s[request] = math.nan

    def end_engines(self, at: int, engines: Iterable[Engine]) -> None:
        """Count what engines of a group did, which are given up."""
        counted = [engine.scheduler.counters.num_preemptions for engine in engines]
        self._num_preemptions[at] += sum(counted)

    def due_s(self, engine: Engine) -> float:
        """When the most urgent of an engine's next tokens is due."""
        least = math.inf
        for request, sequence in engine.live.items():
            if sequence.state is State.DECODING:
                begun_s = float(self._first_token_s[request])
                due_s = begun_s + sequence.num_output * self._tpot_limit_s[request]
            else:
                due_s = self._due_s[request]
            least = min(least, due_s)
        return least

    def outcome(self, groups: Sequence[GroupRun]) -> GenerationOutcome:
        """All of it, once nothing is left to do."""
        for at, group in enumerate(groups):
            self._answers.busy_s[at] = group.work_s
            self.end_engines(at, group.engines)
        answers = self._answers
        return GenerationOutcome(
            self._workload,
            self._placement,
            answers.status,
            answers.answered_s,
            self._first_token_s,
            self._predicted_ttft_s,
            answers.group,
            answers.busy_s,
            self._num_preemptions,
        )
