"""The joint planner: what it returns, refuses and explains."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import (
    Action,
    CostSurface,
    Kind,
    PipelinePlan,
    check_schedule,
    flop_cost,
    peak_bytes,
    plan_pipeline,
    simulate,
    unit_cost,
)
from blocks.pipeline.memory import MemorySizes
from blocks.pipeline.plan.candidates import every_slicing
from blocks.pipeline.plan.mode import Mode
from blocks.pipeline.plan.step_costs import sizes_of_stages, step_costs
from tests.pipeline.plan.brute_force import best_makespan

TOKENS = MemorySizes(activations=lambda stage, num_tokens, start: num_tokens)
BACKWARD_TWICE = {"input_gradient": (1, 1), "weight_gradient": (1, 1)}


def some_cost() -> CostSurface:
    return flop_cost(
        1024, flops_per_s=1e13, num_layers=4, fixed_s=2e-5, latency_s=1e-5, bytes_per_s=1e10
    )


def some_sizes() -> MemorySizes:
    return MemorySizes(
        activations=lambda stage, num_tokens, start: 34 * num_tokens,
        keys_values=lambda stage, num_tokens, start: 4 * num_tokens,
        accumulators=lambda stage, num_tokens, start: 8 * num_tokens,
        weight_inputs=lambda stage, num_tokens, start: 20 * num_tokens,
        inputs=lambda stage, num_tokens, start: 2 * num_tokens,
    )


@settings(max_examples=12)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([(1,), (2,), (1, 2)]),
    st.booleans(),
    st.booleans(),
    st.floats(1, 4),
)
def test_plans_hold_what_they_say(
    num_ranks: int,
    num_sequences: int,
    num_chunks: tuple[int, ...],
    recompute: bool,
    whole_prefix: bool,
    room: float,
) -> None:
    cost, seq_len, cap = some_cost(), 512, room * 40_000
    plan = plan_pipeline(
        cost,
        seq_len,
        num_sequences,
        num_ranks,
        sizes=some_sizes(),
        memory_cap=cap,
        num_slices=(1, 2, 4),
        num_chunks=num_chunks,
        recompute=recompute,
        whole_prefix=whole_prefix,
        effort=20_000,
    )
    schedule, chunks = plan.schedule, plan.schedule.num_stages // num_ranks
    check_schedule(schedule, canonical=True)
    assert chunks in num_chunks
    part = cost.scaled(1 / chunks)
    slices = [(stop - start, start) for start, stop in itertools.pairwise(plan.bounds)]

    def seconds(action: Action) -> float:
        return part.seconds(action.kind, *slices[action.slice])

    def transfer(action: Action) -> float:
        return part.transfer_seconds(slices[action.slice][0])

    timeline = simulate(schedule, seconds, transfer=transfer)
    assert timeline.makespan == pytest.approx(plan.makespan_s, rel=1e-12)
    assert timeline.bubble == pytest.approx(plan.bubble, abs=1e-12)
    sizes = sizes_of_stages(some_sizes(), num_ranks, chunks)
    peaks = peak_bytes(schedule, sizes, [plan.bounds] * num_sequences, whole_prefix=whole_prefix)
    assert peaks == pytest.approx(plan.peak_bytes, rel=1e-9)
    assert max(peaks) <= cap * (1 + 1e-9)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-12)
    assert plan.order_bound_s <= plan.makespan_s * (1 + 1e-12)
    again = {a.stage for program in schedule.programs for a in program if a.kind == Kind.RECOMPUTE}
    assert tuple(sorted(again)) == plan.recompute
    assert recompute or not plan.recompute


@given(
    st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    st.sampled_from([0.0, 0.05]),
    st.integers(1, 3),
    st.floats(1, 3),
    st.booleans(),
)
def test_within_a_hundredth_of_all_cuts_and_orders(
    alpha: float, fixed: float, num_ranks: int, room: float, uneven: bool
) -> None:
    unit = unit_cost(alpha, 4, **BACKWARD_TWICE)
    surfaces = [unit.scaled(1.0 + 0.5 * uneven * rank) for rank in range(num_ranks)]
    plan = plan_pipeline(
        surfaces,
        4,
        2,
        num_ranks,
        memory_cap=4 * room,
        granularity=2,
        num_slices=(1, 2),
        split_weights=(False,),
    )
    best = min(
        best_makespan(step_costs(surfaces, TOKENS, bounds, Mode()), 2, 4 * room)
        for bounds in every_slicing(4, 2)
    )
    assert plan.lower_bound_s <= best * (1 + 1e-12)
    assert best * (1 - 1e-12) <= plan.makespan_s <= 1.01 * best


def test_equal_arguments_give_equal_plans_and_json_brings_them_back() -> None:
    plans = [plan_pipeline(some_cost(), 1024, 4, 4, num_slices=(2, 4)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert PipelinePlan.from_json(json.loads(json.dumps(plans[0].to_json()))) == plans[0]
    with pytest.raises(ValueError, match="pipeline plan: expected the keys"):
        PipelinePlan.from_json({})


def test_a_cap_too_small_is_refused_with_one_that_is_not() -> None:
    with pytest.raises(ValueError, match="memory_cap: expected at least 64 bytes, got 63"):
        plan_pipeline(unit_cost(0.5, 64), 64, 3, 4, memory_cap=63)
    plan = plan_pipeline(unit_cost(0.5, 64), 64, 3, 4, memory_cap=64)
    assert max(plan.peak_bytes) == 64


def test_recomputation_where_nothing_else_fits() -> None:
    arguments = {"sizes": some_sizes(), "num_slices": (4,), "num_sequences": 4, "num_ranks": 2}
    with pytest.raises(ValueError, match="allow more memory, recomputation"):
        plan_pipeline(some_cost(), 512, memory_cap=20_000, **arguments)
    plan = plan_pipeline(some_cost(), 512, memory_cap=20_000, recompute=True, **arguments)
    assert plan.recompute
    assert "recompute their activations" in plan.explanation
    assert " under a cap of " in plan.explanation
    assert "e+" not in plan.explanation, "units for people"


def test_more_memory_is_no_slower_where_the_bound_is_met() -> None:
    cost = unit_cost(0.5, 4096, **BACKWARD_TWICE)

    def plan(cap: float) -> PipelinePlan:
        return plan_pipeline(
            cost,
            4096,
            8,
            4,
            memory_cap=cap * 4096,
            num_slices=8,
            cuts=("uniform",),
            split_weights=(False,),
        )

    times = [plan(cap).makespan_s for cap in (1.0, 1.25, 1.5, 2.0, 3.0)]
    assert times == sorted(times, reverse=True)
    assert times[-1] < times[0]


def test_weight_gradients_of_their_own_fill_the_waits() -> None:
    cost = unit_cost(0.2, 1024)
    whole, split = (
        plan_pipeline(cost, 1024, 4, 4, num_slices=1, split_weights=(choice,))
        for choice in (False, True)
    )
    assert split.makespan_s < 0.95 * whole.makespan_s
    assert "Weight gradients fill waits" in split.explanation


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_ranks": 0}, "num_ranks: expected a positive whole number"),
        ({"seq_len": 0}, "seq_len: expected a positive whole number"),
        ({"sizes": MemorySizes(activations=lambda *_: float("nan"))}, "sizes of rank 0: expected"),
        ({"sizes": MemorySizes(inputs=lambda *_: -1)}, "sizes of rank 0: expected bytes"),
        ({"memory_cap": 0}, "memory_cap: expected a positive number"),
        ({"cuts": ("odd",)}, "cuts: expected some of"),
        ({"num_slices": 99}, "num_slices: expected 1 to 8 slices of 8 tokens"),
        ({"num_slices": ()}, "num_slices: expected 1 to 8"),
        ({"num_chunks": (0,)}, "num_chunks: expected positive numbers"),
        ({"split_weights": ()}, "split_weights: expected"),
        ({"effort": 0}, "effort: expected a positive number"),
        ({"cost": [unit_cost(0.5, 64)] * 3}, "cost: expected one or 2 surfaces"),
    ],
)
def test_misuse_is_refused(change: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {
        "cost": unit_cost(0.5, 64),
        "seq_len": 64,
        "num_sequences": 2,
        "num_ranks": 2,
    }
    with pytest.raises(ValueError, match=said):
        plan_pipeline(**{**arguments, **change})  # type: ignore[arg-type]
