"""Long runs through faults that come faster than they are mended, and the calm after them."""

import random
from typing import NamedTuple

import numpy as np

from blocks.sched.cluster_sim import Event, Overheads, simulate
from blocks.sched.workload import merge
from tests.sched.cluster.cases import draw_events, draw_placement, draw_profiles, draw_workload
from tests.sched.cluster.checks import check_stages

QUIET_S = 1000.0


class Told(NamedTuple):
    """What storms were like; ``otherwise`` counts requests that they gave another answer."""

    requests: int
    faults: int
    otherwise: int


def storm(seed: int, num_requests: int) -> Told:
    """One storm, then quiet, then traffic again; raises AssertionError on a breach.

    Every request has one answer; no stage is taken twice; once all is mended and the queues ran
    empty, every bit is as if nothing had happened.
    """
    rng = random.Random(seed)
    names = list("abcdef")
    placement = draw_placement(rng, names, 6)
    profiles = draw_profiles(rng, names)
    rough = draw_workload(rng, names, num_requests)
    calm = draw_workload(rng, names, max(100, num_requests // 10))
    start_s = rough.duration_s + QUIET_S
    workload = merge([rough, calm.delayed(start_s)])
    num_groups = len(placement.groups)
    count = max(20, num_requests // 50)
    events = list(draw_events(rng, names, num_groups, rough.duration_s, count))
    end_s = rough.duration_s + 2
    events += [Event(end_s, "up", -1), Event(end_s, "load", -1)]
    # what begins with "up" or "load" is not there before: all are there to begin with
    events = [Event(0.0, "down", -1), Event(0.0, "unload", -1), *events]
    events[2:2] = [Event(0.0, "up", -1), Event(0.0, "load", -1)]
    batching = rng.random() < 0.3
    overheads = rng.choice([Overheads(), Overheads(0.011, (0.004, 0.0025), 0.009)])
    retry = rng.random() < 0.8
    shared = {"batching": batching, "overheads": overheads, "retry": retry}
    outcome = simulate(placement, profiles, workload, events=events, **shared)
    outcome.check_invariants()
    check_stages(outcome, profiles, overheads)
    plain = simulate(placement, profiles, workload, **shared)
    after = workload.arrival_s >= start_s
    for name in ("status", "answered_s", "group"):
        np.testing.assert_array_equal(getattr(outcome, name)[after], getattr(plain, name)[after])
    otherwise = int((outcome.status != plain.status).sum())
    return Told(workload.num_requests, len(events), otherwise)


def storms(num_requests: int, each: int = 50_000, first_seed: int = 0) -> Told:
    """Storms until as many requests were simulated."""
    sums = Told(0, 0, 0)
    seed = first_seed
    while sums.requests < num_requests:
        told = storm(seed, min(each, num_requests))
        sums = Told(*(a + b for a, b in zip(sums, told, strict=True)))
        seed += 1
    return sums
