"""The search over models that generate."""

import numpy as np
import pytest

from blocks.sched.cluster_sim.generation import EngineSettings, simulate_generation
from blocks.sched.place_search import GenerationSimulator, Simulator, place
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, DecodeTime, PrefillTime, Profile, Timing
from blocks.sched.workload import Workload, gamma_workload
from tests.sched.cluster.cases import MADE_UP
from tests.sched.cluster.test_generation import on, profiles

NAMES = ("a", "b", "c")
PROFILES = profiles(*NAMES)


def workload() -> Workload:
    drawn = gamma_workload([1.5, 1.0, 0.5], 3.0, 8.0, np.random.default_rng(0), NAMES)
    return drawn.with_lengths(40, 12).with_slo(0.5, 0.05)


@pytest.mark.parametrize(
    "placement",
    [
        on([["a", "b"], ["c"], ["b"], []]),
        on([["a", "b", "c"], ["a"]], (1, 2)),
        on([["b"]]),
        Placement(()),
    ],
)
def test_parts_together_are_the_whole(placement: Placement) -> None:
    asked = workload()
    simulator = GenerationSimulator(PROFILES, asked)
    assert isinstance(simulator, Simulator)
    found, again = simulator.run(placement), simulator.run(placement)
    whole = simulate_generation(placement, PROFILES, asked)
    assert found.attainment == again.attainment == whole.attainment
    met = np.bincount(asked.model[whole.met], minlength=3)
    assert found.met_by_model.tolist() == met.tolist()
    busy = whole.busy_s > 0
    assert ((np.array(found.utilisation) > 0) == busy).all()


def test_generating_models_are_placed_with_room_for_their_caches() -> None:
    asked = workload()
    plan = place(
        asked,
        PROFILES,
        2,
        1000,
        simulator=GenerationSimulator(PROFILES, asked),
        configurations=[Configuration(1, 1), Configuration(1, 2)],
        kv_tokens=dict.fromkeys(NAMES, 64),
        beam_simulations=0,
        local_simulations=5,
    )
    assert plan.placement.problems(PROFILES, 1000, 2) == ()
    assert plan.attainment == simulate_generation(plan.placement, PROFILES, asked).attainment
    assert 0.3 < plan.attainment <= plan.bound == 1
    for group in plan.placement.groups:
        assert min(group.kv_tokens, default=64) >= 64


def test_stages_are_chosen_where_a_batch_each_keeps_them_at_work() -> None:
    """Two devices to a layer take 0.9 of the time, two stages half of it each."""

    def row(op: int, pp: int, share: float) -> Timing:
        def cut(tokens: int) -> tuple[float, ...]:
            return (share * (0.004 + tokens * 1e-3),) * pp

        return Timing(
            Configuration(op, pp),
            (100,) * pp,
            kv_bytes_per_token=1,
            prefill=tuple(PrefillTime(n, cut(n)) for n in (1, 1001)),
            decode=tuple(DecodeTime(n, c, cut(n)) for n in (1, 101) for c in (1, 1001)),
        )

    known = {"a": Profile("a", "d", MADE_UP, (row(1, 2, 0.5), row(2, 1, 0.9)))}
    drawn = gamma_workload([12.0], 2.0, 6.0, np.random.default_rng(0), ["a"])
    asked = drawn.with_lengths(40, 30).with_slo(0.3, 0.04)

    def chosen(num_lanes: int | None) -> tuple[str, float]:
        settings = EngineSettings(num_lanes=num_lanes, overlap=False)
        plan = place(
            asked,
            known,
            2,
            1000,
            simulator=GenerationSimulator(known, asked, settings=settings),
            configurations=[Configuration(2, 1), Configuration(1, 2)],
            kv_tokens={"a": 800},
            beam_simulations=0,
            local_simulations=2,
        )
        return str(plan.placement.groups[0].configuration), plan.attainment

    (alone, least), (ahead, most) = chosen(1), chosen(None)
    assert (alone, ahead) == ("2 x 1", "1 x 2")
    assert least < most
