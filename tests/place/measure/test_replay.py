"""Replays against engines on a clock: the rules are the simulator's, event for event."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from blocks.sched.cluster_sim.generation import (
    Admission,
    GenerationOutcome,
    Load,
    Pace,
    StepTime,
    simulate_generation,
)
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from blocks.sched.workload import Workload
from recipes.place.group import GroupLost, LostReason, Step
from recipes.place.group.taken import OnLost
from recipes.place.measure import ClockedGroup, StepPace, replay, run_virtual
from recipes.place.measure.clocked_pipeline import ClockedPipeline
from recipes.serve.job import Job
from recipes.serve.stream import Stream
from tests.place.measure.made_up import (
    KV_TOKENS,
    SETTINGS,
    groups_of,
    half_s,
    idle_engine,
    made_up,
    profile_s,
    traffic,
)

PROFILES = {"m0": made_up("m0"), "m1": made_up("m1", 1.7), "m2": made_up("m2", 0.6)}
OPEN = Admission(ttft=False, tpot=False)


def on(*hosted: str, configuration: tuple[int, int] = (1, 1)) -> Placement:
    """``on("01", "2")``: a group with models m0 and m1 and one with m2."""
    size = configuration[0] * configuration[1]
    groups = []
    for at, digits in enumerate(hosted):
        devices = tuple(range(at * size, at * size + size))
        models = tuple(f"m{digit}" for digit in digits)
        rooms = (KV_TOKENS,) * len(models)
        groups.append(Group(devices, Configuration(*configuration), models, rooms))
    return Placement(tuple(groups))


PLACEMENTS = (
    on("0", "1", "2"),
    on("012", "012"),
    on("01", "12", "02"),
    on("012", configuration=(1, 2)),
    on("01", "012", configuration=(2, 1)),
)


def replayed(
    workload: Workload,
    placement: Placement,
    admission: Admission,
    pace: Pace = lambda group, now_s: 1.0,
    found: list[StepPace] | None = None,
) -> GenerationOutcome:
    """On groups whose steps take ``pace`` times what the profile says.

    Args:
        found: gets the pace that their steps tell.
    """

    async def played() -> GenerationOutcome:
        loop, zero_s = asyncio.get_running_loop(), [0.0]
        ports = groups_of(placement, PROFILES, lambda group: pace(group, loop.time() - zero_s[-1]))
        outcome = await replay(
            workload,
            placement,
            ports,
            PROFILES,
            settings=SETTINGS,
            admission=admission,
            vocab_size=300,
            begun=zero_s.append,
        )
        if found is not None:
            known = [
                {
                    model: StepTime(PROFILES[model].timing(group.configuration))
                    for model in group.models
                }
                for group in placement.groups
            ]
            found.append(StepPace.of([one.steps for one in ports], known, zero_s[-1], WINDOW_S))
        return outcome

    return run_virtual(played())


@pytest.mark.parametrize("admission", [OPEN, Admission()], ids=["open", "refusing"])
@pytest.mark.parametrize("at", range(len(PLACEMENTS)))
def test_a_replay_on_a_clock_is_the_simulation(at: int, admission: Admission) -> None:
    placement = PLACEMENTS[at]
    workload = traffic(at, [50.0, 20.0, 30.0], 2.0, 0.6).with_slo(0.04, 0.012)
    expected = simulate_generation(
        placement, PROFILES, workload, settings=SETTINGS, admission=admission
    )
    same(replayed(workload, placement, admission), expected)
    assert 0 < expected.met.sum() < workload.num_requests, "limits that some miss"


PIPELINES = (
    on("0", configuration=(1, 2)),
    on("0", "1", configuration=(1, 2)),
    on("012", configuration=(1, 2)),
    on("01", "02", configuration=(1, 2)),
)


@pytest.mark.parametrize("admission", [OPEN, Admission()], ids=["open", "refusing"])
@pytest.mark.parametrize("uneven", [0.0, 0.5])
@pytest.mark.parametrize("at", range(len(PIPELINES)))
def test_batches_in_stages_are_those_of_the_simulation(at, uneven, admission) -> None:
    placement, settings = PIPELINES[at], dataclasses.replace(SETTINGS, num_lanes=None)
    known = {model: made_up(model, uneven=uneven) for model in PROFILES}
    count = len({model for group in placement.groups for model in group.models})
    workload = traffic(at, [60.0, 20.0, 20.0][:count], 2.0, 1.2).with_slo(0.04, 0.012)

    async def played() -> GenerationOutcome:
        ports = [
            ClockedPipeline(
                {model: idle_engine(known[model], (1, 2), depth=2) for model in group.models},
                half_s,
            )
            for group in placement.groups
        ]
        return await replay(
            workload,
            placement,
            ports,
            known,
            settings=settings,
            admission=admission,
            vocab_size=300,
        )

    options = {"settings": settings, "admission": admission}
    expected = simulate_generation(placement, known, workload, **options)
    same(run_virtual(played()), expected)
    assert 0 < expected.met.sum() < workload.num_requests, "limits that some miss"
    options["settings"] = SETTINGS
    alone = simulate_generation(placement, known, workload, **options)
    if len(placement.groups) == count and not uneven:
        assert alone.met.sum() < expected.met.sum(), "every model has its stages for itself"


WINDOW_S = 0.05
DRIFTING = StepPace(
    WINDOW_S,
    tuple(
        tuple(1.0 + 0.5 * ((7 * window + 3 * group) % 5 - 1) for window in range(40))
        for group in range(3)
    ),
)
"""From half as long as the profile says to two and a half times."""


@pytest.mark.parametrize("at", range(len(PLACEMENTS)))
def test_engines_whose_pace_changes_are_the_simulation_with_that_pace(at: int) -> None:
    placement = PLACEMENTS[at]
    workload = traffic(at, [50.0, 20.0, 30.0], 2.0, 0.6).with_slo(0.04, 0.012)
    found: list[StepPace] = []
    got = replayed(workload, placement, Admission(), DRIFTING, found)
    simulated = [
        simulate_generation(placement, PROFILES, workload, settings=SETTINGS, pace=pace)
        for pace in (DRIFTING, None)
    ]
    same(got, simulated[0])
    assert got.answered_s.tolist() != pytest.approx(simulated[1].answered_s.tolist())
    for group, own in enumerate(found[0].factors):  # as far as steps were taken in a window
        assert len(own) > 3
        steady = [one == pytest.approx(DRIFTING.factors[group][k]) for k, one in enumerate(own)]
        assert sum(steady) > 0.6 * len(own)
    same(
        got,
        simulate_generation(placement, PROFILES, workload, settings=SETTINGS, pace=found[0]),
    )


class Mortal(ClockedGroup):
    """Dies of whatever it is asked, once it has accepted it."""

    async def submit(
        self, model: str, jobs: Sequence[Job], *, on_lost: OnLost | None = None, **_: Any
    ) -> Stream:
        assert on_lost is not None
        stream = Stream(jobs, lambda *_: None)
        lost = GroupLost("mortal", LostReason("ended", "it was killed"))
        asyncio.get_running_loop().call_soon(on_lost, stream, lost)
        return stream


def test_a_group_that_is_lost_ends_the_replay() -> None:
    workload = traffic(0, [50.0], 1.0, 0.3)

    async def played() -> None:
        port = Mortal({"m0": idle_engine(PROFILES["m0"], (1, 1))}, profile_s)
        await replay(workload, on("0"), [port], PROFILES, settings=SETTINGS, vocab_size=300)

    with pytest.raises(GroupLost, match="it was killed"):
        run_virtual(played())


def test_the_pace_of_steps_is_by_group_in_windows() -> None:
    load = Load(10, (), 0, 0)

    def step(began_s: float, seconds: float) -> Step:
        return Step(began_s, seconds, "m", load)

    taken = [step(9.9, 50.0), step(10.6, 1.0), step(10.7, 5.0), step(12.2, 6.0)]
    known = {"m": lambda load: (1.0, 1.0)}
    pace = StepPace.of([taken, []], [known, known], 10.0, 0.5)
    assert pace.factors == ((2.0, 1.5, 1.5, 1.5, 3.0), (1.0,))
    assert [pace(0, at_s) for at_s in (-1.0, 0.0, 0.5, 1.9, 2.0, 99.0)] == [2, 2, 1.5, 1.5, 3, 3]
    assert pace(1, 3.0) == 1.0
    assert pace.spread == (1.0, 3.0)


def same(got: GenerationOutcome, expected: GenerationOutcome) -> None:
    """Event for event."""
    got.check_invariants()
    assert got.status.tolist() == expected.status.tolist()
    assert got.group.tolist() == expected.group.tolist()
    near = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}
    assert got.predicted_ttft_s == pytest.approx(expected.predicted_ttft_s, **near)
    assert got.first_token_s == pytest.approx(expected.first_token_s, **near)
    assert got.answered_s == pytest.approx(expected.answered_s, **near)
    assert got.met.tolist() == expected.met.tolist()
