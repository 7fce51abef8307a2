"""The three placement cases of AlpaServe's own tests."""

import collections

import numpy as np
import pytest

from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search import (
    Evaluator,
    Memory,
    PlacementPlan,
    canonical,
    greedy_selection,
    place,
)
from blocks.sched.profile import Configuration, single_pass
from blocks.sched.workload import Workload, gamma_workload

GB = 10**9
STAGE_S = {(1, 1): [0.1], (1, 2): [0.051, 0.052], (1, 4): [0.028, 0.027, 0.027, 0.029]}
PROFILES = {name: single_pass(name, "V100", STAGE_S, 2 * GB) for name in ("a", "b", "c", "d")}


def workload(rate: float, cv: float, seed: int) -> Workload:
    """100 s of four equal models, to be answered in 0.4 s."""
    return gamma_workload([rate] * 4, cv, 100.0, np.random.default_rng(seed), list(PROFILES), 0.4)


def placed(
    rate: float, cv: float, seed: int, gigabytes: float, *configurations: tuple[int, int]
) -> PlacementPlan:
    arrivals = workload(rate, cv, seed)
    return place(
        arrivals,
        PROFILES,
        4,
        int(gigabytes * GB),
        configurations=[Configuration(*one) for one in configurations] or None,
        local_simulations=20,
    )


@pytest.mark.parametrize("seed", range(2))
def test_each_of_four_models_has_two_replicas_where_two_fit_on_a_device(seed: int) -> None:
    plan = placed(5, 1, seed, 4.5, (1, 1))
    replicas = collections.Counter(m for g in plan.placement.groups for m in g.models)
    assert replicas == dict.fromkeys(PROFILES, 2)
    assert plan.placement.problems(PROFILES, int(4.5 * GB), 4) == ()


@pytest.mark.parametrize("seed", range(2))
def test_two_groups_of_two_host_all_four(seed: int) -> None:
    arrivals = workload(5, 1, seed)
    memory = Memory(PROFILES, int(4.5 * GB))
    evaluate = Evaluator(ClusterSim(PROFILES, arrivals), arrivals, memory)
    pairs = [(Configuration(1, 2), ())] * 2
    trial = greedy_selection(evaluate, memory, pairs, arrivals.models)
    assert trial.placement == canonical([(Configuration(1, 2), "abcd")] * 2)


@pytest.mark.parametrize("seed", range(2))
def test_a_burst_wants_one_pipeline_of_all_devices(seed: int) -> None:
    plan = placed(4, 8, seed, 2.5)
    assert plan.placement == canonical([(Configuration(1, 4), "abcd")])
