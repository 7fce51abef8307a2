"""Simulated engines: small cases by hand, laws, faults, and real allocators beside the counter."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.kv import BlockManager
from blocks.sched.cluster_sim import (
    FAILED,
    FINISHED,
    REJECTED,
    UNPLACED,
    Event,
    Overheads,
    simulate,
)
from blocks.sched.cluster_sim.generation import (
    Admission,
    EngineSettings,
    GenerationOutcome,
    SharedCores,
    simulate_generation,
)
from blocks.sched.cluster_sim.generation.loop import GenerationLoop
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import (
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Timing,
    single_pass,
)
from blocks.sched.reference import ReferenceAllocator
from blocks.sched.workload import Workload, gamma_workload
from tests.sched.cluster.cases import MADE_UP, draw_events

seeds = st.integers(0, 2**32 - 1)
OPEN = Admission(ttft=False, tpot=False)


def timing(op: int, pp: int, kv_bytes: int = 1) -> Timing:
    """A prompt takes a tenth of a second and a thousandth a token; a decode step 10 ms, 1 ms more
    for every sequence after the first, and 1 us a token of context."""

    def cut(seconds: float) -> tuple[float, ...]:
        return (seconds / (op * pp),) * pp

    prefill = tuple(PrefillTime(n, cut(0.1 + n * 1e-3)) for n in (1, 1001))
    decode = tuple(
        DecodeTime(b, c, cut(0.009 + b * 1e-3 + b * c * 1e-6)) for b in (1, 101) for c in (1, 1001)
    )
    return Timing(
        Configuration(op, pp),
        (1,) * pp,
        kv_bytes_per_token=kv_bytes,
        prefill=prefill,
        decode=decode,
    )


def profiles(*names: str) -> dict[str, Profile]:
    degrees = [(1, 1), (1, 2), (2, 1)]
    rows = tuple(timing(op, pp) for op, pp in degrees)
    return {name: Profile(name, "d", MADE_UP, rows) for name in names}


def on(
    hosted: list[list[str]], configuration: tuple[int, int] = (1, 1), kv: int = 4096
) -> Placement:
    size = configuration[0] * configuration[1]
    return Placement(
        tuple(
            Group(
                tuple(range(at * size, at * size + size)),
                Configuration(*configuration),
                tuple(models),
                (kv,) * len(models),
            )
            for at, models in enumerate(hosted)
        )
    )


def ask(arrival_s: list[float], prompt: Any, output: Any, **more: Any) -> Workload:
    return Workload.of(["a"], arrival_s, prompt_len=prompt, output_len=output, **more)


def run(workload: Workload, placement: Placement | None = None, **more: Any) -> GenerationOutcome:
    placement = on([["a"]]) if placement is None else placement
    outcome = simulate_generation(placement, profiles("a", "b"), workload, **more)
    outcome.check_invariants()
    return outcome


def decode_s(batch_size: int, context_len: int) -> float:
    return 0.009 + batch_size * 1e-3 + context_len * 1e-6


# --- by hand -------------------------------------------------------------------------------------


def test_one_request_alone() -> None:
    outcome = run(ask([5.0], 100, 4))
    assert outcome.ttft_s[0] == pytest.approx(0.2)
    steps = sum(decode_s(1, 100 + drawn) for drawn in (1, 2, 3))
    assert outcome.answered_s[0] == pytest.approx(5.2 + steps)
    assert outcome.tpot_s[0] == pytest.approx(steps / 3)
    assert outcome.busy_s[0] == pytest.approx(0.2 + steps)
    only = run(ask([0.0], 100, 1))
    assert only.tpot_s.tolist() == [0.0]


def test_two_together_share_every_step() -> None:
    outcome = run(ask([0.0, 0.0], [100, 200], 3))
    assert outcome.ttft_s == pytest.approx([0.4, 0.4]), "one step with 300 prompt tokens"
    steps = sum(decode_s(2, 300 + 2 * drawn) for drawn in (1, 2))
    assert outcome.tpot_s == pytest.approx([steps / 2] * 2)


def test_a_prompt_beside_decodes_is_cut_by_the_budget() -> None:
    settings = EngineSettings(token_budget=101)
    outcome = run(ask([0.0, 0.15], [50, 150], [4, 1]), settings=settings)
    assert outcome.ttft_s[0] == pytest.approx(0.15)
    # the second prompt: 100 tokens beside a decode (101 in all), 50 beside the next one, whose
    # attention to the first 100 is free in this profile
    extra_s = [(50 + drawn) * 1e-6 - 1e-6 for drawn in (1, 2)]
    later_s = 0.2 + extra_s[0] + 0.1 + extra_s[1]
    assert outcome.ttft_s[1] == pytest.approx(0.001 + later_s + 0.051, abs=2e-3)


def test_a_pipeline_needs_lanes_to_be_busy() -> None:
    workload = ask([0.0] * 8, 10, 80)
    lone = run(workload, on([["a"]], (1, 2)))
    lanes = run(workload, on([["a"]], (1, 2)), settings=EngineSettings(num_lanes=2))
    assert lone.utilisation[0] <= 0.5 + 1e-9
    assert lanes.utilisation[0] > 0.9
    one_by_one = EngineSettings(num_lanes=None, overlap=False)
    alone = run(workload, on([["a"]], (1, 2)), settings=one_by_one)
    assert alone.utilisation[0] > 0.9, "no other engine is there"


def test_batches_on_their_way_share_a_cache_and_wait_for_no_token() -> None:
    """The prompt's chunks follow one another; half of the cache would not hold it."""
    settings = EngineSettings(token_budget=100, num_lanes=2, block_size=16)
    outcome = run(ask([0.0], 300, 1), on([["a"]], (1, 2), kv=320), settings=settings)
    assert outcome.ttft_s == pytest.approx([0.4]), "three chunks of 0.1 s a stage, and one stage"
    assert outcome.predicted_ttft_s == pytest.approx([0.4])
    alone = run(ask([0.0], 300, 1), on([["a"]], (1, 2)), settings=EngineSettings(token_budget=100))
    assert alone.ttft_s == pytest.approx([0.6])


def test_two_models_take_turns() -> None:
    workload = Workload.of(["a", "b"], [0.0, 0.0], [0, 1], prompt_len=100, output_len=5)
    for turns in ("due", "round"):
        outcome = run(workload, on([["a", "b"]]), settings=EngineSettings(turns=turns))
        assert outcome.ttft_s == pytest.approx([0.2, 0.4])
        assert outcome.tpot_s[1] > 1.5 * decode_s(1, 102), "every other step is the other's"
    urgent = Workload.of(
        ["a", "b"], [0.0, 0.0, 0.01], [0, 0, 1], slo_s=[9, 9, 1], prompt_len=300, output_len=1
    )
    settings = EngineSettings(token_budget=300)
    soon = run(urgent, on([["a", "b"]]), settings=settings, admission=OPEN)
    assert soon.ttft_s[2] == pytest.approx(0.79), "before the second of a, which is due later"


def test_what_does_not_fit_is_refused() -> None:
    outcome = run(ask([0.0, 0.0], [100, 5000], 10), admission=OPEN)
    assert outcome.status.tolist() == [FINISHED, REJECTED]
    long = run(ask([0.0], 100, 100), settings=EngineSettings(max_model_len=150), admission=OPEN)
    assert long.status.tolist() == [REJECTED]
    stranger = Workload.of(["z"], [0.0], prompt_len=1, output_len=1)
    assert run(stranger).status.tolist() == [UNPLACED]


def test_a_short_cache_preempts_and_finishes_all() -> None:
    workload = ask([0.0] * 6, 60, 60)
    outcome = run(workload, on([["a"]], kv=256), admission=OPEN)
    assert outcome.finished.all()
    assert outcome.num_preemptions[0] > 0
    assert run(workload, admission=OPEN).num_preemptions[0] == 0


def test_admission_refuses_what_would_come_too_late() -> None:
    workload = ask([0.0] * 10, 400, 4, slo_s=1.3)
    taken = run(workload)
    assert 0 < taken.counts["rejected"] < 10
    assert taken.counts["late"] == 0
    assert run(workload, admission=OPEN).counts["late"] == 10 - taken.counts["finished"]
    slow = ask([0.0] * 10, 10, 30, tpot_s=0.0125)
    assert run(slow).counts == {"finished": 3, "rejected": 7, "unplaced": 0, "failed": 0, "late": 0}
    assert run(slow, admission=OPEN).attainment == 0
    loose = Admission(slack=100.0)
    assert run(workload, admission=loose).counts["rejected"] == 0


def test_a_request_goes_where_it_keeps_its_limits_if_that_is_later() -> None:
    """Group 0 computes a long prompt, group 1 decodes five answers when the last request comes."""
    arrival_s = [0.0] + [0.01] * 5 + [0.2]
    prompt, output = [300, 1, 1, 1, 1, 1, 10], [1, 60, 60, 60, 60, 60, 5]
    both = on([["a"], ["a"]])
    free = run(ask(arrival_s, prompt, output), both)
    assert free.group.tolist() == [0, 1, 1, 1, 1, 1, 1], "sooner beside decodes"
    inf = float("inf")
    tpot_s = [inf] * 6 + [0.013]  # with five others a decode step takes 15 ms
    got = run(ask(arrival_s, prompt, output, tpot_s=tpot_s), both)
    assert got.group.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert got.attainment == 1.0
    assert got.ttft_s[-1] > free.ttft_s[-1]
    unasked = run(ask(arrival_s, prompt, output, tpot_s=tpot_s), both, admission=OPEN)
    assert unasked.group.tolist() == free.group.tolist()
    refused = run(ask(arrival_s, prompt, output, tpot_s=tpot_s, slo_s=[inf] * 6 + [0.25]), both)
    assert refused.status[-1] == REJECTED, "each of the two breaks one of its limits"
    assert refused.predicted_ttft_s[-1] == free.predicted_ttft_s[-1]


def test_of_two_that_are_as_soon_the_one_with_fewer_requests_is_asked() -> None:
    outcome = run(ask([0.0] * 4, [5, 10, 5, 1], 1), on([["a"], ["a"]]))
    assert outcome.group.tolist() == [0, 1, 0, 1], "ten tokens each, of two and of one"


def test_overheads_delay_tokens_and_slow_stages() -> None:
    outcome = run(ask([0.0], 100, 2), overheads=Overheads(0.5, (0.25,), 0.1))
    assert outcome.ttft_s[0] == pytest.approx(0.2 * 1.1 + 0.5)
    assert outcome.tpot_s[0] == pytest.approx(0.25 + decode_s(1, 101) * 1.1)


def test_a_stopped_group_hands_over_from_the_start() -> None:
    workload = ask([0.0, 0.0], 100, 50)
    stops = [Event(0.3, "down", 0), Event(0.4, "up", 0), Event(0.5, "clock", -1, seconds=-100.0)]
    outcome = run(workload, on([["a"], ["a"]]), events=stops)
    assert outcome.group.tolist() == [1, 1]
    calm = run(workload, on([["a"], ["a"]]))
    assert calm.group.tolist() == [0, 1]
    assert outcome.ttft_s[0] > 0.4
    failed = run(workload, on([["a"], ["a"]]), events=stops, retry=False)
    assert failed.status.tolist() == [FAILED, FINISHED]
    assert failed.answered_s[0] == 0.3


def test_models_that_are_loaded_later() -> None:
    workload = ask([0.0, 2.0, 4.0], 10, 2)
    events = [Event(1.0, "load", 0, "a"), Event(3.0, "unload", 0)]
    outcome = run(workload, events=events)
    assert outcome.status.tolist() == [UNPLACED, FINISHED, UNPLACED]
    outcome = run(workload, events=[Event(1.0, "up", 0)])
    assert outcome.status.tolist() == [UNPLACED, FINISHED, FINISHED]


@pytest.mark.parametrize(
    ("workload", "placement", "says"),
    [
        (ask([0.0], 0, 1), None, "lengths: expected at least 1 token"),
        (
            ask([0.0], 1, 1),
            Placement((Group((0,), Configuration(1, 1), ("a",)),)),
            "kv_tokens of a",
        ),
        (ask([0.0], 1, 1), on([["a"]], kv=3), "kv_tokens of a: expected at least a block"),
        (ask([0.0], 1, 1), on([["a"]], (2, 2)), "configuration of a: expected one of 1 x 1"),
    ],
)
def test_what_does_not_go_together(workload: Workload, placement: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        run(workload, placement)


def test_predictions_are_exact_alone_and_near_behind_others() -> None:
    """Behind others the front door knows neither how long they go on nor who comes next."""
    outcome = run(ask([0.0], 100, 9), overheads=Overheads(request_s=0.5))
    assert outcome.predicted_ttft_s == pytest.approx(outcome.ttft_s)
    settings = EngineSettings(token_budget=100, max_num_seqs=100)
    queued = run(ask([0.0, 0.05, 0.06], [100, 50, 250], 1), settings=settings)
    assert queued.predicted_ttft_s == pytest.approx(queued.ttft_s, rel=0.2)


def test_predictions_fall_on_the_right_side_of_the_limit() -> None:
    numbers = np.random.default_rng(0)
    made = gamma_workload([3.0], 3.0, 60.0, numbers, ["a"])
    lengths = numbers.integers(1, [[400], [30]], (2, made.num_requests))
    workload = made.with_lengths(lengths[0], lengths[1]).with_slo(1.0)
    outcome = run(workload, admission=OPEN)
    late, thought_late = outcome.ttft_s > 1, outcome.predicted_ttft_s > 1
    assert 0.1 < late.mean() < 0.9, "or there is nothing to tell apart"
    assert (late == thought_late).mean() > 0.95


def test_one_place_and_one_token_are_the_single_pass_queue() -> None:
    """Engines of one place that answer with one token serve as the single-pass cluster does."""
    numbers = np.random.default_rng(1)
    workload = gamma_workload([4.0], 2.0, 60.0, numbers, ["a"]).with_lengths(100, 1)
    outcome = run(workload, settings=EngineSettings(max_num_seqs=1), admission=OPEN)
    plain = simulate(on([["a"]]), {"a": single_pass("a", "d", {(1, 1): [0.2]}, 1)}, workload)
    assert outcome.answered_s == pytest.approx(plain.answered_s)
    assert plain.mean_latency_s > 0.3


# --- laws ----------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[Workload, Placement, dict[str, Any], random.Random]:
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    names = ["a", "b"]
    workload = gamma_workload([4.0, 2.0], 2.0, 3.0, numbers, names)
    lengths = numbers.integers(1, [[150], [15]], (2, workload.num_requests))
    workload = workload.with_lengths(lengths[0], lengths[1])
    workload = workload.with_slo(rng.choice([0.5, 2.0]), rng.choice([0.02, 0.1]))
    hosted = [rng.sample(names, rng.randint(0, 2)) for _ in range(rng.randint(1, 3))]
    placement = on(hosted, rng.choice([(1, 1), (1, 2), (2, 1)]), kv=rng.choice([192, 1024]))
    options: dict[str, Any] = {
        "settings": EngineSettings(
            token_budget=rng.choice([32, 256]),
            max_num_seqs=rng.choice([2, 16]),
            num_lanes=rng.choice([1, 2]),
            overlap=rng.choice([True, True, False]),
            block_size=rng.choice([4, 16]),
            turns=rng.choice(["due", "round"]),
        ),
        "admission": rng.choice([OPEN, Admission(), Admission(slack=2.0)]),
        "retry": rng.random() < 0.7,
    }
    return workload, placement, options, rng


@given(seeds)
def test_nothing_is_lost_whatever_happens(seed: int) -> None:
    workload, placement, options, rng = draw(seed)
    events = draw_events(rng, ["a", "b"], len(placement.groups), 3.0, rng.choice([0, 10]))
    options["events"] = sorted(events, key=lambda event: event.at_s)
    loop = GenerationLoop(
        placement,
        profiles("a", "b"),
        workload,
        make_allocator=lambda blocks, size: BlockManager(blocks + 1, size, prefix_cache=False),
        overheads=Overheads(),
        **options,
    )
    outcome = loop.run()
    outcome.check_invariants()
    for group in loop.groups:
        for engine in group.engines:
            engine.scheduler.check_invariants()
            assert not engine.live
            assert not engine.scheduler.has_work()
            assert engine.allocator.num_free_blocks == engine.allocator.num_usable_blocks
    counted = simulate_generation(placement, profiles("a", "b"), workload, **options)
    for name in ("status", "answered_s", "first_token_s", "group", "num_preemptions"):
        np.testing.assert_array_equal(getattr(outcome, name), getattr(counted, name), name)


def test_the_reference_allocator_gives_the_same_answers() -> None:
    workload, placement, options, _ = draw(3)
    counted = simulate_generation(placement, profiles("a", "b"), workload, **options)
    options["make_allocator"] = ReferenceAllocator
    plain = simulate_generation(placement, profiles("a", "b"), workload, **options)
    np.testing.assert_array_equal(plain.answered_s, counted.answered_s)


@given(seeds)
def test_tokens_never_come_faster_than_alone(seed: int) -> None:
    workload, placement, options, _ = draw(seed)
    outcome = simulate_generation(placement, profiles("a", "b"), workload, **options)
    known = profiles("a")["a"]
    for request in np.flatnonzero(outcome.finished):
        configuration = placement.groups[outcome.group[request]].configuration
        alone = known.timing(configuration)
        least_s = sum(alone.prefill_s(int(workload.prompt_len[request])))
        assert outcome.ttft_s[request] >= least_s - 1e-9
        if workload.output_len[request] > 1:
            assert outcome.tpot_s[request] >= sum(alone.decode_s(1, 1)) - 1e-9


# --- one step at a time, and shared cores --------------------------------------------------------

ALONE = EngineSettings(overlap=False)


def test_steps_that_do_not_overlap_follow_one_another() -> None:
    both = Workload.of(["a", "b"], [0.0, 0.0], [0, 1], prompt_len=100, output_len=1)
    pipeline = on([["a", "b"]], (1, 2))
    assert run(both, pipeline).ttft_s == pytest.approx([0.2, 0.3])
    alone = run(both, pipeline, settings=ALONE)
    assert alone.ttft_s == pytest.approx([0.2, 0.4])


def test_a_shared_core_is_shared_evenly() -> None:
    late = Workload.of(["a", "b"], [0.0, 0.1], [0, 1], prompt_len=100, output_len=1)
    apart = on([["a"], ["b"]])
    cores = SharedCores((0, 0))
    got = run(late, apart, settings=ALONE, cores=cores)
    assert got.answered_s == pytest.approx([0.3, 0.4]), "half the core each from 0.1 to 0.3"
    assert got.predicted_ttft_s == pytest.approx([0.2, 0.2]), "a front door knows no cores"
    assert got.busy_s == pytest.approx([0.2, 0.2])
    slower = run(late, apart, settings=ALONE, cores=SharedCores((0, 1), (1.0, 0.5)))
    assert slower.answered_s == pytest.approx([0.3, 0.4]), "two cores at half their speed"


def test_a_step_over_two_cores_is_as_slow_as_its_slowest() -> None:
    groups = (
        Group((0, 1), Configuration(2, 1), ("a",), (4096,)),
        Group((2,), Configuration(1, 1), ("b",), (4096,)),
    )
    both = Workload.of(["a", "b"], [0.0, 0.0], [0, 1], prompt_len=100, output_len=1)
    got = run(both, Placement(groups), settings=ALONE, cores=SharedCores((0, 1, 1)))
    assert got.answered_s == pytest.approx([0.2, 0.3]), "0.1 s at half speed, then b alone"
    stages = (groups[0]._replace(configuration=Configuration(1, 2)), groups[1])
    got = run(both, Placement(stages), settings=ALONE, cores=SharedCores((0, 1, 1)))
    assert got.answered_s == pytest.approx([0.3, 0.3]), "they meet on core 1 after 0.1 s"


@given(seeds, st.booleans())
def test_cores_of_their_own_change_nothing(seed: int, pipeline: bool) -> None:
    rng = np.random.default_rng(seed)
    workload = gamma_workload([4.0, 4.0], 2.0, 5.0, rng, ["a", "b"])
    count = workload.num_requests
    workload = workload.with_lengths(rng.integers(1, 200, count), rng.integers(1, 9, count))
    placement = on([["a", "b"], ["b", "a"]], (1, 2) if pipeline else (1, 1))
    cores = SharedCores(tuple(range(4)))
    plain = run(workload, placement, settings=ALONE)
    shared = run(workload, placement, settings=ALONE, cores=cores)
    assert shared.answered_s == pytest.approx(plain.answered_s)
    assert shared.group.tolist() == plain.group.tolist()


def test_cores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        run(ask([0.0], 1, 1), cores=SharedCores((0,)))
    with pytest.raises(ValueError, match="one for each device"):
        run(ask([0.0], 1, 1), on([["a"]], (2, 1)), settings=ALONE, cores=SharedCores((0, 0)))
    with pytest.raises(ValueError, match="core for each device"):
        run(ask([0.0], 1, 1), settings=ALONE, cores=SharedCores(()))


@given(seeds, st.floats(0.2, 5.0), st.booleans())
def test_a_constant_pace_is_a_profile_scaled_by_it(seed: int, pace: float, pipeline: bool) -> None:
    rng = np.random.default_rng(seed)
    workload = gamma_workload([4.0, 4.0], 2.0, 5.0, rng, ["a", "b"])
    count = workload.num_requests
    workload = workload.with_lengths(rng.integers(1, 200, count), rng.integers(1, 9, count))
    placement = on([["a"], ["b"]], (1, 2) if pipeline else (1, 1))  # nobody chooses by predictions
    paced = run(workload, placement, settings=ALONE, admission=OPEN, pace=lambda group, now_s: pace)
    slowed = {
        name: one.scaled(name, time=pace, why="slower") for name, one in profiles("a", "b").items()
    }
    scaled = simulate_generation(placement, slowed, workload, settings=ALONE, admission=OPEN)
    assert paced.first_token_s == pytest.approx(scaled.first_token_s)
    assert paced.answered_s == pytest.approx(scaled.answered_s)
    assert paced.busy_s == pytest.approx(scaled.busy_s)


def test_a_pace_counts_by_group_and_where_a_step_begins() -> None:
    both = Workload.of(["a", "b"], [0.0, 0.0], [0, 1], prompt_len=100, output_len=2)

    def pace(group: int, now_s: float) -> float:
        return 3.0 if group == 1 and now_s >= 0.2 else 1.0

    got = run(both, on([["a"], ["b"]]), settings=ALONE, pace=pace)
    step_s = decode_s(1, 101)
    assert got.first_token_s == pytest.approx([0.2, 0.2]), "begun before"
    assert got.answered_s == pytest.approx([0.2 + step_s, 0.2 + 3 * step_s])
    assert got.predicted_ttft_s == pytest.approx([0.2, 0.2])
    shared = SharedCores((0, 0))
    got = run(both, on([["a"], ["b"]]), settings=ALONE, cores=shared, pace=lambda *_: 0.5)
    assert got.first_token_s == pytest.approx([0.2, 0.2]), "half the seconds at half the speed"


def test_a_pace_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        run(ask([0.0], 1, 1), pace=lambda *_: 1.0)
    with pytest.raises(ValueError, match="pace of group 0"):
        run(ask([0.0], 1, 1), settings=ALONE, pace=lambda *_: 0.0)
