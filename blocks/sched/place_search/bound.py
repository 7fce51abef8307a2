"""A bound on what any placement can attain, whatever its groups and however it dispatches."""

import heapq
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from blocks._checks import check_count
from blocks.sched.profile import Configuration, Profile, Timing
from blocks.sched.workload import Workload

SLACK = 1e-9


class Bound(NamedTuple):
    """No placement serves a larger share of the requests.

    attainment: the least of the three below.
    latency: share of requests whose limit is no less than the fastest configuration's time.
    work: share that one machine as quick as all devices together could serve if it might cut
        requests into pieces and leave the last ones unfinished: each takes at least the device
        seconds of its cheapest configuration that meets its limit, between arrival and deadline.
    memory: the same machine for each model alone, over the best choice of models (the last of them
        in part) whose weights fit into the memory of all devices together.
    """

    attainment: float
    latency: float
    work: float
    memory: float


def attainment_bound(
    workload: Workload,
    profiles: Mapping[str, Profile],
    num_devices: int,
    memory_bytes: int,
    configurations: Collection[Configuration],
    *,
    batching: bool = False,
) -> Bound:
    """Relaxations of serving the workload on so many devices.

    They hold for simulations in which no stage is ever quicker than its profile and a group runs
    a request on its devices for the times of its stages. Requests of models that generate, and
    those without a time limit, count as served.

    Args:
        configurations: those that groups may be in.
        batching: whether requests may share a pass.
    """
    check_count("num_devices", num_devices)
    check_count("memory_bytes", memory_bytes)
    total = workload.num_requests
    if not total:
        return Bound(1.0, 1.0, 1.0, 1.0)
    jobs = [
        _jobs(workload, index, profiles[model], num_devices, memory_bytes, configurations, batching)
        for index, model in enumerate(workload.models)
    ]
    latency = sum(len(one.jobs) + one.free for one in jobs) / total
    free = sum(one.free for one in jobs)
    work = free + most_served([job for one in jobs for job in one.jobs], num_devices)
    alone = [one.free + most_served(one.jobs, num_devices) for one in jobs]
    room = float(num_devices * memory_bytes)
    memory = 0.0
    worth = sorted(
        zip(alone, jobs, strict=True), key=lambda pair: pair[1].bytes / (pair[0] or 1e-9)
    )
    for served, one in worth:
        part = min(1.0, room / one.bytes) if one.bytes else 1.0
        memory += part * served
        room -= part * one.bytes
    shares = [min(1.0, count / total) for count in (work, memory)]
    least = min(latency, *shares)
    return Bound(int(least * total + SLACK * total + 1e-6) / total, latency, *shares)


class Job(NamedTuple):
    """A request: device seconds it takes at least, between arrival and deadline."""

    work_s: float
    arrival_s: float
    deadline_s: float


class _ModelJobs(NamedTuple):
    jobs: list[Job]
    free: int
    bytes: int


def most_served(jobs: Sequence[Job], num_devices: int) -> float:
    """Most jobs done in time, parts of jobs counted as parts, by a machine that does
    ``num_devices`` seconds of work a second and may interrupt any job.

    The amounts of work that can be done in time form a polymatroid, so taking jobs by rising work
    and giving each class all it can have beside the classes before is best; the work of a set
    that gets done is greatest when the earliest deadline goes first.
    """
    served, before = 0.0, 0.0
    kinds = sorted({job.work_s for job in jobs})
    for kind in kinds:
        done = _work_done([job for job in jobs if job.work_s <= kind], num_devices)
        served += max(0.0, done - before) / kind
        before = max(done, before)
    return served


def _work_done(jobs: Sequence[Job], num_devices: int) -> float:
    """Work done before its deadline when the earliest deadline goes first."""
    ordered = sorted(jobs, key=lambda job: job.arrival_s)
    arrivals = [*(job.arrival_s for job in ordered[1:]), float("inf")]
    waiting: list[tuple[float, float]] = []
    done = 0.0
    for job, until_s in zip(ordered, arrivals, strict=True):
        heapq.heappush(waiting, (job.deadline_s, job.work_s))
        now_s = job.arrival_s
        while waiting and now_s < until_s:
            deadline_s, left_s = heapq.heappop(waiting)
            stop_s = min(until_s, deadline_s, now_s + left_s / num_devices)
            if stop_s > now_s:
                part = min(left_s, (stop_s - now_s) * num_devices)
                done += part
                if stop_s == until_s and left_s - part > 0 and deadline_s > until_s:
                    heapq.heappush(waiting, (deadline_s, left_s - part))
                now_s = stop_s
    return done


def _jobs(
    workload: Workload,
    index: int,
    profile: Profile,
    num_devices: int,
    memory_bytes: int,
    configurations: Collection[Configuration],
    batching: bool,
) -> _ModelJobs:
    """What the requests of one model take at least."""
    mine = workload.model == index
    count = int(mine.sum())
    timings = [
        timing
        for configuration in configurations
        if configuration.num_devices <= num_devices
        and (timing := profile.find(configuration)) is not None
        and timing.device_bytes() <= memory_bytes
    ]
    least_bytes = min(
        (max(one.weight_bytes) * one.configuration.num_devices for one in timings), default=0
    )
    if not timings:
        return _ModelJobs([], 0, 0)
    if any(timing.decode for timing in timings):
        return _ModelJobs([], count, least_bytes)
    limits = workload.slo_s[mine].tolist()
    arrivals = workload.arrival_s[mine].tolist()
    costs = sorted((_latency_s(one, batching), _work_s(one, batching)) for one in timings)
    quickest = [latency_s for latency_s, _ in costs]
    cheapest = list(itertools.accumulate((work_s for _, work_s in costs), min))
    jobs, free = [], 0
    for arrival_s, slo_s in zip(arrivals, limits, strict=True):
        if slo_s == float("inf"):
            free += 1
            continue
        able = sum(1 for latency_s in quickest if latency_s <= slo_s + SLACK)
        if able:
            jobs.append(Job(cheapest[able - 1], arrival_s, arrival_s + slo_s + SLACK))
    return _ModelJobs(jobs, free, least_bytes)


def _latency_s(timing: Timing, batching: bool) -> float:
    sizes = timing.batch_sizes if batching else (1,)
    return min(sum(timing.stage_s(size)) for size in sizes)


def _work_s(timing: Timing, batching: bool) -> float:
    """Device seconds a request keeps busy, in the batch that shares them best."""
    sizes = timing.batch_sizes if batching else (1,)
    return timing.configuration.op * min(sum(timing.stage_s(size)) / size for size in sizes)
