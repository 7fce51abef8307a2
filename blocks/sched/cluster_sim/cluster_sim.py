"""``ClusterSim``: simulates placements on one workload, and only what it has not simulated yet."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks._checks import check, check_count, fail
from blocks.sched.cluster_sim import native
from blocks.sched.cluster_sim.components import components
from blocks.sched.cluster_sim.outcome import Outcome
from blocks.sched.cluster_sim.problem import (
    UNPLACED,
    Answers,
    Floats,
    Problem,
    check_noise,
    event_tables,
    replica_tables,
)
from blocks.sched.cluster_sim.reference import run_reference
from blocks.sched.cluster_sim.settings import (
    DISPATCH,
    Event,
    Overheads,
    check_events,
)
from blocks.sched.placement.group import Group
from blocks.sched.placement.placement import Placement
from blocks.sched.profile.profile import Profile
from blocks.sched.workload.workload import Workload


class Part(NamedTuple):
    """What was simulated of a component: its requests and what became of them.

    requests: indices into the workload; None for all of them.
    answers: groups are numbered within the component.
    """

    requests: npt.NDArray[np.intp] | None
    answers: Answers


class ClusterSim:
    """A cluster that serves single-pass models, as discrete events. Not thread-safe.

    Requests come to one front door, which sends each to one of the groups that host its model.
    There it is taken or refused at once, by whether it would be answered before its deadline; what
    was taken is served first come, first served, stage by stage (see ``reference.py``). A placement
    falls into components that share no model; each one that was simulated before is remembered, so
    that placements which differ in one group cost what that group can change.

    Args:
        profiles: of every model, by its name.
        workload: the requests.
        dispatch: which group gets a request; see ``DISPATCH``.
        batching: requests wait in their group, and each time its first stage is free, it launches
            the model whose head came first: the largest of the profile's batches that can be filled
            and meets the head's deadline. Else every request runs alone.
        admit: refuse what would miss its deadline; else serve it all the same, late.
        overheads: on top of the profile's times.
        events: faults; they name groups by index in the placement that is run.
        noise: factors on the stage times, [num_requests, stages]; see ``stage_noise``. Whoever
            admits does not know them.
        retry: what a stopping group had not finished is asked again elsewhere; else it fails.
        impl: ``native`` (C++; needs a compiler once) or ``reference`` (Python, slow): the same
            answers, bit for bit. None takes the first that can be had.
        cache_bytes: how much to remember.

    Raises:
        ValueError: settings that cannot take effect.

    Reference: Li et al., AlpaServe, 2023, sections 4.2 and 5 (simulator); queueing of tasks of
    known length with admission by deadline.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        workload: Workload,
        *,
        dispatch: str = "shortest_queue",
        batching: bool = False,
        admit: bool = True,
        overheads: Overheads | None = None,
        events: Sequence[Event] = (),
        noise: Floats | None = None,
        retry: bool = True,
        impl: str | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        check(dispatch in DISPATCH, "dispatch", f"one of {DISPATCH}", repr(dispatch))
        if batching and dispatch != "shortest_queue":
            hint = "a waiting request has no place in the stages yet"
            raise fail("dispatch with batching", "'shortest_queue'", repr(dispatch), hint)
        check_count("cache_bytes", cache_bytes, least=0)
        check(impl in (None, "native", "reference"), "impl", "'native' or 'reference'", repr(impl))
        if impl is None:
            impl = "native" if native.is_available() else "reference"
        self.profiles = profiles
        self.workload = workload
        self.dispatch = dispatch
        self.batching = batching
        self.admit = admit
        self.overheads = (overheads or Overheads()).checked()
        self.events = tuple(events)
        self.noise = np.zeros((0, 0)) if noise is None else noise
        self.retry = retry
        self.impl = impl
        self.cache_bytes = cache_bytes
        self.num_simulated = 0
        self._run = native.run_native if impl == "native" else run_reference
        self._index = {model: at for at, model in enumerate(workload.models)}
        self._deadline_s = workload.deadline_s
        self._cache: collections.OrderedDict[object, Part] = collections.OrderedDict()
        self._cached_bytes = 0

    def run(self, placement: Placement) -> Outcome:
        """What becomes of the workload.

        Raises:
            ValueError: a hosted model without profile or without times in its configuration, or
                events for groups that are not there.
        """
        groups, workload = placement.groups, self.workload
        check_events(self.events, len(groups))
        status = np.full(workload.num_requests, UNPLACED, np.int8)
        answered_s = workload.arrival_s.copy()
        group = np.full(workload.num_requests, -1, np.int32)
        busy_s = np.zeros(len(groups))
        for indices in components(groups):
            requests, answers = self._part([groups[i] for i in indices], indices)
            number = np.array([*indices, -1], np.int32)  # -1, nobody, stays -1
            where = slice(None) if requests is None else requests
            status[where] = answers.status
            answered_s[where] = answers.answered_s
            group[where] = number[answers.group]
            busy_s[indices] = answers.busy_s
        return Outcome(workload, placement, status, answered_s, group, busy_s)

    def _part(self, groups: list[Group], indices: list[int]) -> Part:
        events = self._events_of(indices)
        spread = tuple((group.configuration, frozenset(group.models)) for group in groups)
        key = (spread, events)
        found = self._cache.get(key)
        if found is None:
            self.num_simulated += 1
            found = self._simulate(groups, events)
            self._remember(key, found)
        else:
            self._cache.move_to_end(key)
        return found

    def _events_of(self, indices: list[int]) -> tuple[Event, ...]:
        local = {index: at for at, index in enumerate(indices)}
        kept = [event for event in self.events if event.group < 0 or event.group in local]
        return tuple(event._replace(group=local.get(event.group, -1)) for event in kept)

    def _simulate(self, groups: list[Group], events: tuple[Event, ...]) -> Part:
        workload, index = self.workload, self._index
        hosted = sorted({index[m] for group in groups for m in group.models if m in index})
        models = [workload.models[at] for at in hosted]
        requests = None
        model, arrival_s, deadline_s = workload.model, workload.arrival_s, self._deadline_s
        noise = self.noise
        if noise.size:
            most = max(group.configuration.pp for group in groups)
            check_noise(noise, workload.num_requests, most)
        if len(hosted) < len(workload.models):
            table = np.full(len(workload.models), -1, np.int32)
            table[hosted] = np.arange(len(hosted), dtype=np.int32)
            local = table[model]
            requests = np.flatnonzero(local >= 0)
            model, arrival_s, deadline_s = (
                local[requests],
                arrival_s[requests],
                deadline_s[requests],
            )
            noise = noise[requests] if noise.size else noise
        tables = replica_tables(groups, models, self.profiles, self.overheads, self.batching)
        replicas = tables["replica_group"], tables["replica_model"]
        faults = event_tables(events, models, *replicas, len(groups))
        problem = Problem(
            arrival_s=arrival_s,
            model=model,
            deadline_s=deadline_s,
            noise=noise,
            **tables,
            **faults,
            dispatch=DISPATCH.index(self.dispatch),
            batching=self.batching,
            admit=self.admit,
            retry=self.retry,
            request_s=self.overheads.request_s,
        )
        return Part(requests, self._run(problem))

    def _remember(self, key: object, part: Part) -> None:
        self._cache[key] = part
        self._cached_bytes += _num_bytes(part)
        while self._cached_bytes > self.cache_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _num_bytes(dropped)


def _num_bytes(part: Part) -> int:
    answers = part.answers
    arrays = [answers.status, answers.answered_s, answers.group, answers.busy_s]
    return sum(array.nbytes for array in arrays) + (
        0 if part.requests is None else part.requests.nbytes
    )


def simulate(
    placement: Placement,
    profiles: Mapping[str, Profile],
    workload: Workload,
    *,
    dispatch: str = "shortest_queue",
    batching: bool = False,
    admit: bool = True,
    overheads: Overheads | None = None,
    events: Sequence[Event] = (),
    noise: Floats | None = None,
    retry: bool = True,
    impl: str | None = None,
) -> Outcome:
    """What becomes of a workload under one placement; see ``ClusterSim`` for the arguments.

    >>> from blocks.sched.profile import Configuration, single_pass
    >>> profiles = {"a": single_pass("a", "CPU", {(1, 2): [0.5, 0.5]}, 0)}
    >>> placement = Placement.equal_groups(2, Configuration(1, 2), [["a"]])
    >>> workload = Workload.of(["a"], [0.0, 0.1, 0.2], slo_s=1.5)
    >>> outcome = simulate(placement, profiles, workload, impl="reference")
    >>> outcome.answered_s.tolist(), outcome.attainment
    ([1.0, 1.5, 0.2], 0.6666666666666666)
    """
    sim = ClusterSim(
        profiles,
        workload,
        dispatch=dispatch,
        batching=batching,
        admit=admit,
        overheads=overheads,
        events=events,
        noise=noise,
        retry=retry,
        impl=impl,
    )
    return sim.run(placement)


def stage_noise(num_requests: int, num_stages: int, cv: float, rng: np.random.Generator) -> Floats:
    """Factors on stage times: log-normal with mean 1 and this coefficient of variation."""
    check(cv >= 0, "cv", "0 or more", cv)
    sigma = float(np.sqrt(np.log1p(cv**2)))
    return rng.lognormal(-(sigma**2) / 2, sigma, (num_requests, num_stages))
