"""The bound's machine against every set of jobs that can be done in time."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.place_search.bound import Job, most_served

JOBS = st.lists(
    st.builds(
        lambda work, arrival, slack: Job(float(work), float(arrival), float(arrival + slack)),
        st.sampled_from([1, 2, 5]),
        st.integers(0, 6),
        st.integers(0, 8),
    ),
    max_size=7,
)


def feasible(jobs: tuple[Job, ...], speed: int) -> bool:
    """Whether a machine that may interrupt does all in time: no window asks for too much."""
    starts = {job.arrival_s for job in jobs}
    stops = {job.deadline_s for job in jobs}
    return all(
        sum(job.work_s for job in jobs if start <= job.arrival_s and job.deadline_s <= stop)
        <= speed * (stop - start)
        for start in starts
        for stop in stops
        if stop >= start
    )


def most_whole_jobs(jobs: list[Job], speed: int) -> int:
    for count in range(len(jobs), 0, -1):
        if any(feasible(chosen, speed) for chosen in itertools.combinations(jobs, count)):
            return count
    return 0


@given(JOBS, st.integers(1, 3))
def test_no_less_than_the_most_jobs_done_in_time(jobs: list[Job], speed: int) -> None:
    most = most_served(jobs, speed)
    assert most_whole_jobs(jobs, speed) <= most + 1e-9
    assert most <= len(jobs) + 1e-9
    assert most <= most_served(jobs, speed + 1) + 1e-9


@given(JOBS, st.integers(1, 3))
def test_exact_where_everything_can_be_done(jobs: list[Job], speed: int) -> None:
    everything = abs(most_served(jobs, speed) - len(jobs)) < 1e-9
    assert everything == feasible(tuple(jobs), speed)


def test_parts_of_jobs_count_as_parts() -> None:
    jobs = [Job(4.0, 0.0, 2.0), Job(1.0, 0.0, 2.0)]
    assert most_served(jobs, 1) == pytest.approx(1 + 1 / 4)
