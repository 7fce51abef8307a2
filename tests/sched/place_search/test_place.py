"""The search against every placement there is, and against what it must never fall below."""

import json
from typing import Any

import pytest

from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.place_search import (
    Evaluator,
    Memory,
    PlacementPlan,
    attainment_bound,
    exhaustive_search,
    improve,
    place,
    shake,
)
from blocks.sched.place_search.local_search import neighbours
from blocks.sched.place_search.trial import Trial, contents
from blocks.sched.profile import Configuration
from tests.sched.place_search.cases import Case, draw
from tests.sched.place_search.volume import apart

Groups = tuple[tuple[Configuration, tuple[str, ...]], ...]


def placed(case: Case, **options: Any) -> PlacementPlan:
    return place(
        case.workload,
        case.profiles,
        case.num_devices,
        case.memory_bytes,
        configurations=case.configurations,
        **options,
    )


def evaluator(case: Case) -> Evaluator:
    memory = Memory(case.profiles, case.memory_bytes)
    return Evaluator(ClusterSim(case.profiles, case.workload), case.workload, memory)


@pytest.mark.parametrize("seed", [0, 5])
def test_within_one_percent_of_the_best_of_all_placements(seed: int) -> None:
    case = draw(seed, max_models=3, max_devices=4, requests=60)
    evaluate = evaluator(case)
    best = exhaustive_search(
        evaluate, evaluate.memory, case.workload.models, case.configurations, case.num_devices
    )
    plan = placed(case)
    top = best.trial.score.attainment
    assert top - 0.01 <= plan.attainment <= top <= plan.bound <= 1.0
    assert plan.placement.problems(case.profiles, case.memory_bytes, case.num_devices) == ()


def test_a_plan_is_what_it_says() -> None:
    case = draw(12, max_models=3, max_devices=3, requests=60)
    plan = placed(case, local_simulations=10)
    outcome = ClusterSim(case.profiles, case.workload).run(plan.placement)
    assert plan.attainment == pytest.approx(outcome.attainment)
    assert plan.attained[plan.found_by] == plan.attainment == max(plan.attained.values())
    assert plan.gap == max(0.0, plan.bound - plan.attainment)


@pytest.mark.parametrize(
    ("call", "cases"),
    [
        ("against_all_placements(range(30), 4, 4, 5_000)", 30),
        ("against_all_placements(range(100, 108), 6, 8, 10_000)", 8),
        ("against_replication(range(15), 12, 16)", 15),
        ("against_swapping(range(6), 12e9)", 6),
    ],
)
def test_promises_over_many_cases(call: str, cases: int) -> None:
    found = apart(call)
    assert found.startswith(f"Compared(cases={cases}, kept={cases}, "), found


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("call", "cases"),
    [
        ("against_all_placements(range(1000, 1080), 6, 8, 30_000)", 80),
        ("against_replication(range(1000, 1300), 12, 16)", 300),
        ("against_swapping(range(1000, 1100), 12e9)", 100),
        ("against_swapping(range(1000, 1100), float('inf'))", 100),
    ],
)
def test_promises_over_very_many_cases(call: str, cases: int) -> None:
    found = apart(call)
    assert found.startswith(f"Compared(cases={cases}, kept={cases}, "), found


def test_the_same_question_has_the_same_answer_and_a_plan_is_plain_data() -> None:
    case = draw(11, max_models=3, max_devices=3, requests=60)
    plan = placed(case, local_simulations=20)
    assert plan == placed(case, local_simulations=20)
    assert PlacementPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert str(plan.evaluated) in str(plan)


def test_local_search_ends_where_no_single_change_is_better() -> None:
    case = draw(5, max_models=3, max_devices=3, requests=60)
    evaluate, models = evaluator(case), case.workload.models
    poor = evaluate([(case.configurations[0], ())] * case.num_devices)
    assert poor.score.attainment == 0
    found = improve(
        evaluate,
        evaluate.memory,
        poor,
        models,
        case.configurations,
        case.num_devices,
        simulations=10**6,
    )
    assert found.score.attainment > 0
    for groups in neighbours(evaluate.memory, found, models):
        assert evaluate(groups).score <= found.score
    few = improve(
        evaluator(case),
        evaluate.memory,
        poor,
        models,
        case.configurations,
        case.num_devices,
        simulations=3,
    )
    assert poor.score < few.score <= found.score


@pytest.mark.parametrize(("seed", "most"), [(3075, 0.9), (3080, 0.99)], ids=["once", "again"])
def test_large_changes_find_what_no_small_one_leads_to(seed: int, most: float) -> None:
    """The second case takes several rounds."""
    case = draw(seed, max_models=5, max_devices=5, requests=150, max_placements=1_000)
    evaluate, models = evaluator(case), case.workload.models
    where = (models, case.configurations, case.num_devices)
    ask: dict[str, Any] = {"simulations": 500}
    single = evaluate([(Configuration(1, 1), ())] * case.num_devices)
    stuck = improve(evaluate, evaluate.memory, single, *where, **ask)
    shaken = shake(evaluate, evaluate.memory, stuck, *where, **ask)
    assert stuck.score.attainment < most
    assert shaken.score.attainment == 1
    assert shake(evaluator(case), evaluate.memory, stuck, *where, **ask) == shaken
    assert shake(evaluate, evaluate.memory, stuck, *where, simulations=0) == stuck


@pytest.mark.parametrize(("seed", "most"), [(2118, 50_000), (3075, 1_000)])
def test_the_best_there_is_where_groups_differ(seed: int, most: int) -> None:
    case = draw(seed, max_models=6, max_devices=8, requests=300, max_placements=most)
    evaluate, models = evaluator(case), case.workload.models
    best = exhaustive_search(
        evaluate, evaluate.memory, models, case.configurations, case.num_devices
    )
    assert placed(case).attainment == best.trial.score.attainment


def test_exhaustive_search_counts_and_finds_what_plain_enumeration_does() -> None:
    case = draw(5, max_models=3, max_devices=3, requests=60)
    evaluate = evaluator(case)
    everything = exhaustive_search(
        evaluate, evaluate.memory, case.workload.models, case.configurations, case.num_devices
    )
    seen: dict[Groups, Trial] = {(): evaluate(())}
    frontier: list[Groups] = [()]
    while frontier:  # one more group at a time, in any order
        groups = frontier.pop()
        used = sum(configuration.num_devices for configuration, _ in groups)
        for configuration in case.configurations:
            if used + configuration.num_devices > case.num_devices:
                continue
            for bits in range(1, 1 << len(case.profiles)):
                hosted = tuple(m for i, m in enumerate(sorted(case.profiles)) if bits >> i & 1)
                if evaluate.memory.holds(configuration, hosted):
                    trial = evaluate([*groups, (configuration, hosted)])
                    key = tuple(contents(trial.placement))
                    if key not in seen:
                        seen[key] = trial
                        frontier.append(key)
    assert everything.placements == len(seen)
    best = max(trial.score.attainment for trial in seen.values())
    assert everything.trial.score.attainment == best
    assert everything.simulated < everything.placements


def test_too_many_placements_and_unknown_models_are_refused() -> None:
    case = draw(0, requests=20)
    evaluate = evaluator(case)
    with pytest.raises(ValueError, match="placements: expected at most 10"):
        exhaustive_search(
            evaluate,
            evaluate.memory,
            case.workload.models,
            case.configurations,
            4,
            max_placements=10,
        )
    with pytest.raises(ValueError, match="profiles: expected one for each model"):
        place(case.workload, {}, 2, 10**9)


def test_the_bound_holds_for_a_cluster_without_traffic_or_without_room() -> None:
    case = draw(0, requests=40)
    nothing = attainment_bound(case.workload, case.profiles, 2, 1, case.configurations)
    assert nothing.attainment == 0.0
    silent = case.workload.slice(0, 0)
    assert attainment_bound(silent, case.profiles, 2, 1, case.configurations).attainment == 1.0


def test_no_configuration_at_all_is_refused() -> None:
    case = draw(5, max_models=3, max_devices=3, requests=60)
    with pytest.raises(ValueError, match="configurations: expected at least one, or None"):
        placed(case._replace(configurations=()))
