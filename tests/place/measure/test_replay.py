"""Replays against engines on a clock: the rules are the simulator's, event for event."""

import pytest

from blocks.sched.cluster_sim.generation import Admission, GenerationOutcome, simulate_generation
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from blocks.sched.workload import Workload
from recipes.place.measure import replay, run_virtual
from tests.place.measure.made_up import KV_TOKENS, SETTINGS, groups_of, made_up, traffic

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


def replayed(workload: Workload, placement: Placement, admission: Admission) -> GenerationOutcome:
    async def played() -> GenerationOutcome:
        ports = groups_of(placement, PROFILES)
        return await replay(
            workload,
            placement,
            ports,
            PROFILES,
            settings=SETTINGS,
            admission=admission,
            vocab_size=300,
        )

    return run_virtual(played())


@pytest.mark.parametrize("admission", [OPEN, Admission()], ids=["open", "refusing"])
@pytest.mark.parametrize("at", range(len(PLACEMENTS)))
def test_a_replay_on_a_clock_is_the_simulation(at: int, admission: Admission) -> None:
    placement = PLACEMENTS[at]
    workload = traffic(at, [50.0, 20.0, 30.0], 2.0, 0.6).with_slo(0.04, 0.012)
    expected = simulate_generation(
        placement, PROFILES, workload, settings=SETTINGS, admission=admission
    )
    got = replayed(workload, placement, admission)
    got.check_invariants()
    assert got.status.tolist() == expected.status.tolist()
    assert got.group.tolist() == expected.group.tolist()
    near = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}
    assert got.predicted_ttft_s == pytest.approx(expected.predicted_ttft_s, **near)
    assert got.first_token_s == pytest.approx(expected.first_token_s, **near)
    assert got.answered_s == pytest.approx(expected.answered_s, **near)
    assert got.met.tolist() == expected.met.tolist()
    assert 0 < got.met.sum() < workload.num_requests, "limits that some miss"
