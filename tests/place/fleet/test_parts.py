"""Seats, router, repairs, places for one more model, dealing of devices, waits, traffic."""

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.cluster_sim.generation import EngineSettings, Standing, StepTime, predict
from blocks.sched.placement import Group, Placement
from recipes.place.fleet import (
    Ask,
    Backoff,
    Capacity,
    Desk,
    Fleet,
    Load,
    Part,
    Refusal,
    Route,
    Router,
    Slo,
    Start,
    Stop,
    Unload,
    admit,
    repair,
    waits_for,
)
from recipes.place.fleet.drift import Traffic
from recipes.place.fleet.seat import Word, unheard
from recipes.place.planning.deal import deal
from tests.place.fleet.clusters import (
    BLOCK_SIZE,
    MEMORY,
    NAMES,
    PROFILES,
    SHAPES,
    draw_placement,
    fits,
    group,
    rngs,
)

SETTINGS = EngineSettings(token_budget=64, max_num_seqs=4, block_size=BLOCK_SIZE, overlap=False)
CAPACITY = Capacity(PROFILES, MEMORY, dict.fromkeys(NAMES, 18), BLOCK_SIZE)
NO_LIMIT = Slo()


def router(*hosts: tuple[int, ...], model: str = "c", kv_tokens: int = 400) -> Router:
    """One replica on each of the groups."""
    made = Router(SETTINGS)
    for devices in hosts:
        shape = SHAPES[len(devices) - 1]
        timing = PROFILES[model].timing(shape)
        made.open(devices, model, timing, kv_tokens=kv_tokens, max_model_len=300, now_s=0.0)
    return made


# --- seats and routes ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 3), st.booleans()), max_size=8))
def test_a_seat_adds_what_was_sent_to_what_its_group_told(asks):
    made = router((0,))
    (seat,) = made.hosts("c")
    for at, (prompt_len, num_samples, _) in enumerate(asks):
        made.take(seat, str(at), prompt_len, num_samples, 0.0)
    assert seat.num_live == sum(num_samples for _, num_samples, _ in asks)
    for at, (_, num_samples, ends) in enumerate(asks):
        for sample in range(num_samples - (not ends)):
            made.end(str(at), sample)
            made.end(str(at), sample)  # twice is once
    made.check_invariants()
    left = tuple(prompt_len for prompt_len, _, ends in asks if not ends)
    assert made.num_live == len(left)
    told = Standing(7, 2, 30, 3, 37, 5, ((1, 4), (6, 4)), 92, 3.0)
    for word in (unheard(seat), Word(told, left)):
        before, stands = word.standing, seat.stands(word)
        assert stands.num_prompt - before.num_prompt == sum(left)
        assert stands.live_tokens - before.live_tokens == sum(left)
        assert stands.num_live - before.num_live == len(left)
        blocks = sum(-(-prompt_len // 4) for prompt_len in left)
        assert stands.waiting_blocks - before.waiting_blocks == blocks
        assert stands[1:3] == before[1:3]
        assert stands[6:] == before[6:]
    assert unheard(seat).standing == Standing(num_free_blocks=100)


@given(st.integers(1, 300))
def test_an_idle_replica_is_predicted_as_the_simulator_does(prompt_len):
    made = router((0, 1))
    (seat,) = made.hosts("c")
    step = StepTime(PROFILES["c"].timing(SHAPES[1]))
    expected = predict(Standing(num_free_blocks=100), step, SETTINGS, prompt_len)
    assert made.predict(seat, prompt_len) == expected
    made.request_s = 0.25
    assert made.predict(seat, prompt_len) == (expected.ttft_s + 0.25, expected.tpot_s)


def test_the_shortest_queue_is_chosen_in_seconds_not_in_requests():
    made = router((0,), (1, 2))  # two devices are twice as quick
    quick = made.hosts("c")[1]
    made.take(quick, "x", 4, 1, 0.0)
    found = made.choose("c", 200, NO_LIMIT)
    assert isinstance(found, Route)
    assert found.seat is quick  # one request is there, and still it is sooner
    for at in range(4):
        made.take(quick, f"y{at}", 200, 1, 0.0)
    other = made.choose("c", 200, NO_LIMIT)
    assert isinstance(other, Route)
    assert other.seat.devices == (0,)
    assert made.choose("c", 9, NO_LIMIT, avoid=made.hosts("c")) is None
    assert made.choose("a", 9, NO_LIMIT) is None


def test_of_equal_queues_the_one_with_fewer_requests():
    made = router((0,), (1,))
    first, second = made.hosts("c")
    first.step_time = second.step_time = None
    made.take(first, "x", 4, 1, 0.0)
    found = made.choose("c", 4, NO_LIMIT)
    assert isinstance(found, Route)
    assert (found.seat, found.prediction) == (second, None)


@given(st.integers(1, 200), st.floats(0.001, 1.0), st.floats(0.001, 0.2), rngs)
def test_a_refusal_says_what_is_predicted_of_the_best(prompt_len, ttft_s, tpot_s, rng):
    made = router((0,), (1,))
    for at in range(rng.randrange(6)):
        made.take(rng.choice(made.hosts("c")), str(at), rng.randint(1, 90), 1, 0.0)
    slo = Slo(ttft_s, tpot_s)
    found = made.choose("c", prompt_len, slo)
    predictions = [made.predict(seat, prompt_len) for seat in made.hosts("c")]
    if isinstance(found, Refusal):
        assert not any(slo.allows(one) for one in predictions if one)
        assert found.prediction == made.predict(found.seat, prompt_len)
        assert found.prediction.ttft_s == min(one.ttft_s for one in predictions if one)
        assert found.retry_s > 0
    else:
        assert isinstance(found, Route)
        assert found.prediction is not None
        assert slo.allows(found.prediction)


def test_a_request_too_long_for_one_replica_goes_to_another():
    made = router((0,))
    timing = PROFILES["c"].timing(SHAPES[0])
    made.open((1,), "c", timing, kv_tokens=900, max_model_len=900, now_s=0.0)
    found = made.choose("c", 400, NO_LIMIT, total_len=500)
    assert isinstance(found, Route)
    assert found.seat.devices == (1,)


def test_shut_replicas_keep_what_they_have_and_get_no_more():
    made = router((0,))
    (seat,) = made.hosts("c")
    made.take(seat, "x", 4, 2, 0.0)
    made.shut((0,), "c")
    assert made.choose("c", 4, NO_LIMIT) is None
    made.end("x", 0)
    assert made.num_live == 1
    assert made.drop((0,), "c") == ["x"]
    assert not list(made.seats())
    made.check_invariants()


def test_a_request_is_sent_to_two_groups_at_most():
    fleet = Fleet(Placement(()), CAPACITY, 3, router((0,), (1,), (2,)))
    desk = Desk(fleet, Traffic(NAMES, 60.0))
    ask = Ask("c", (Part("x", 5), Part("y", 5, 2)), 30, Slo(9.0, 9.0))
    assert isinstance(desk.ask(ask, 0.0), Route)
    assert desk.lost(ask)
    assert ask.slo == NO_LIMIT  # it was taken: now it is not refused any more
    assert isinstance(desk.ask(ask, 0.0), Route)
    assert len({seat.devices for seat in ask.tried}) == 2
    assert not desk.lost(ask)
    late = Ask("c", (Part("z", 5),), 30, NO_LIMIT)
    assert isinstance(desk.ask(late, 0.0), Route)
    desk.gain("z", 0, 1, over=False)
    assert not desk.lost(late)
    assert desk.router.num_live == 0


def test_tokens_that_nobody_saw_count_no_more():
    fleet = Fleet(Placement(()), CAPACITY, 1, router((0,)))
    desk = Desk(fleet, Traffic(NAMES, 60.0))
    ask = Ask("c", (Part("x", 5), Part("y", 5)), 30, Slo(9.0, 9.0))
    assert isinstance(desk.ask(ask, 0.0), Route)
    desk.gain("x", 0, 3, over=True)
    desk.gain("y", 0, 2, over=False)
    desk.restart(ask)
    assert ask.arrival is not None
    assert ask.arrival.output_len == 0
    assert desk.lost(ask)
    assert desk.router.num_live == 0
    found = desk.ask(ask, 1.0)  # its group goes on, and there is no other
    assert isinstance(found, Route)
    assert [seat.devices for seat in ask.tried] == [(0,), (0,)]
    assert found.seat.num_live == 2
    desk.router.check_invariants()


def test_decisions_and_searches_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "  # importing it now raises
        "import recipes.place.fleet, recipes.place.fleet.replan, recipes.place.arguments"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the fleet ----------------------------------------------------------------------------------


def small_fleet(*groups: Group, num_devices: int = 4, given_up_s: float = 600.0) -> Fleet:
    limits = {"max_restarts": 2, "given_up_s": given_up_s}
    return Fleet(Placement(groups), CAPACITY, num_devices, Router(SETTINGS), **limits)  # type: ignore


def carry_out(fleet: Fleet, now_s: float) -> list[str]:
    """One round in which everything succeeds."""
    told = []
    for action in fleet.steps(now_s):
        assert fleet.begin(action, now_s) is not None
        fleet.done(action, now_s)
        told.append(str(action))
    fleet.check_invariants()
    return told


def test_a_start_whose_device_was_lost_meanwhile_is_skipped():
    fleet = small_fleet(group([0], "c"))
    start, load = fleet.steps(0.0)
    fleet.lose_devices({0}, 0.0, "gone")
    assert fleet.begin(start, 0.0) is None
    fleet.skip(start)
    assert fleet.begin(load, 0.0) is None
    fleet.skip(load)
    assert not fleet.observed(0.0).busy
    assert carry_out(fleet, 0.0) == []  # c had no other device: nobody asks for it
    fleet.ask("c", 0.0)
    assert fleet.want("c", 0.0)
    assert all("devices 0" not in told for told in carry_out(fleet, 0.0))


def test_a_group_that_was_to_stop_and_dies_is_no_failure():
    fleet = small_fleet(group([0], "c"))
    carry_out(fleet, 0.0)
    fleet.desired = Placement(())
    (stop,) = fleet.steps(1.0)
    live = fleet.begin(stop, 1.0)
    assert live is not None
    fleet.lose(live, 1.0, "its process ended")
    fleet.failed(stop, 1.0, "it is gone")
    assert fleet.counts["lost_groups"] == 0
    fleet.desired = Placement((group([0], "c"),))
    assert len(carry_out(fleet, 1.0)) == 2  # at once


@pytest.mark.parametrize(
    ("given_up_s", "passed_s"), [(600.0, -1e6), (600.0, 1e6), (600.0, 600.0), (150.0, 50.0)]
)
def test_devices_that_were_given_up_come_back_also_when_the_clock_jumps(given_up_s, passed_s):
    fleet = small_fleet(group([0], "c"), num_devices=1, given_up_s=given_up_s)
    now_s = 5000.0
    for _ in range(2):
        start = fleet.steps(now_s)[0]
        fleet.begin(start, now_s)
        fleet.failed(start, now_s, "it does not start")
        fleet.skip(Load((0,), "c", 50))
        now_s += 100.0
    assert fleet.unusable(now_s) == {0}
    assert fleet.steps(now_s) == ()
    later_s = now_s + passed_s
    assert fleet.unusable(later_s) == set()
    fleet.wants_search = False
    fleet.steps(later_s)
    assert fleet.wants_search


def test_a_failed_load_is_told_and_tried_again_after_a_wait():
    fleet = small_fleet(group([0], "c"))
    start, load = fleet.steps(0.0)
    fleet.begin(start, 0.0)
    fleet.done(start, 0.0)
    fleet.begin(load, 0.0)
    assert fleet.why_not("c") is None
    fleet.failed(load, 0.0, "no such file")
    assert fleet.why_not("c") == "no such file"
    assert fleet.steps(0.1) == ()
    assert fleet.next_s(0.1) == 0.5
    assert carry_out(fleet, 0.6) == ["load c on devices 0"]
    assert fleet.why_not("c") is None


# --- placements ---------------------------------------------------------------------------------


@given(rngs)
def test_a_repair_uses_no_lost_device_and_fits(rng: random.Random):
    placement = draw_placement(rng, 5)
    lost = set(rng.sample(range(5), rng.randrange(5)))
    found = repair(placement, lost, CAPACITY)
    used = [device for g in found.groups for device in g.devices]
    assert not lost & set(used)
    assert len(used) == len(set(used))
    assert all(fits(g) for g in found.groups)
    assert not found.problems(PROFILES, MEMORY, 5)
    untouched = [g for g in placement.groups if not lost & set(g.devices)]
    for g in untouched:
        (now,) = [one for one in found.groups if one.devices == g.devices]
        assert set(g.models) <= set(now.models)
    assert repair(placement, (), CAPACITY) == placement


@given(rngs, st.sampled_from(NAMES))
def test_a_place_for_one_more_model_disturbs_only_what_is_idle(rng: random.Random, model: str):
    placement = draw_placement(rng, 4)
    if placement.groups_of(model):
        return
    idle = [(g.devices, m) for g in placement.groups for m in g.models if rng.random() < 0.5]
    free = {0, 1, 2, 3} - {d for g in placement.groups for d in g.devices}
    found = admit(placement, model, CAPACITY, free=free, idle=idle)
    if found is None:
        assert not free  # every model fits on a device alone
        for g in placement.groups:
            left = g
            for devices, other in idle:
                left = left.without(other) if devices == g.devices else left
            assert not fits(left.hosting(model, 20))
        return
    (made,) = [found.groups[at] for at in found.groups_of(model)]
    assert made.kv_tokens_of(model) == 20, "whole blocks"
    assert all(fits(g) for g in found.groups)
    assert not found.problems(PROFILES, MEMORY, 4)
    before = {(g.devices, m) for g in placement.groups for m in g.models}
    after = {(g.devices, m) for g in found.groups for m in g.models}
    assert before - after <= set(idle)


@given(rngs, st.integers(1, 3))
def test_groups_stay_within_nodes_where_they_can(rng: random.Random, per_node: int):
    placement = draw_placement(rng, 6)
    wanted = sum(g.configuration.num_devices for g in placement.groups)
    devices = rng.sample(range(9), rng.randint(wanted, 9))
    dealt = deal(placement, devices, per_node)
    used = [device for g in dealt.groups for device in g.devices]
    assert len(set(used)) == len(used) == wanted
    assert set(used) <= set(devices)
    assert [g._replace(devices=()) for g in dealt.groups] == [
        g._replace(devices=()) for g in placement.groups
    ]
    if per_node >= 2 and set(devices) == set(range(9)):  # pairs first: none need be parted
        assert all(len({d // per_node for d in g.devices}) == 1 for g in dealt.groups)


def test_too_few_devices_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        deal(Placement((group([0, 1], "a"),)), [3], 1)


def test_actions_wait_for_what_they_rely_on():
    there = {(0,): ["a"], (1,): []}
    actions = [
        Load((1,), "a", 8),
        Unload((0,), "a"),
        Load((0,), "b", 8),
        Stop((2, 3)),
        Start((2,), SHAPES[0]),
    ]
    assert waits_for(actions, there | {(2, 3): ["b"]}) == [(), (0,), (1,), (2,), (3,)]
    assert waits_for([Load((1,), "b", 8), Stop((0,))], there) == [(), ()]


# --- waits, traffic -----------------------------------------------------------------------------


@given(st.integers(1, 80), st.integers(-(10**6), 10**6))
def test_waits_double_up_to_a_limit_and_survive_clocks_that_jump(num, jump_s):
    waits = Backoff(0.5, 60.0)
    for at in range(num):
        assert waits.fail("x", 1000.0) == at + 1
    delay_s = waits.next_s(1000.0) - 1000.0
    assert delay_s == pytest.approx(min(60.0, 0.5 * 2 ** (num - 1)))
    assert waits.waiting(1000.0 + jump_s) == (
        frozenset("x") if 0 <= jump_s < delay_s else frozenset()
    )
    waits.clear("x")
    assert (waits.num("x"), waits.next_s(1000.0)) == (0, float("inf"))


def test_the_forecast_is_the_last_window_with_what_came_of_it():
    traffic = Traffic(["a", "b"], 10.0)
    for at in range(30):
        arrival = traffic.arrive("ab"[at % 2], 5 + at, Slo(1.0, 0.1), float(at))
        arrival.output_len = 7 if at % 2 else 0
    found = traffic.forecast(30.0)
    assert found is not None
    assert found.num_requests == 10
    assert found.duration_s == 10.0
    assert found.prompt_len.tolist() == list(range(25, 35))
    assert set(found.output_len[found.model == 1]) == {7}
    assert set(found.output_len[found.model == 0]) == {1}
    assert set(found.slo_s) == {1.0}
    assert traffic.forecast(35.0) is None  # five requests say too little
    short = traffic.forecast(30.0, most=10)
    assert short is not None
    assert short.num_requests == 10
    traffic.arrive("a", 5, Slo(), 3.0)  # the clock was set back
    assert traffic.forecast(30.0) is None


def test_groups_on_demand_take_free_devices_before_others_must_go():
    full = Placement((Group((0,), SHAPES[0], ("a",), (100,)),))
    found = admit(full, "b", CAPACITY, free=[2], idle=[((0,), "a")])
    assert found is not None
    assert [g.devices for g in found.groups if "b" in g.models] == [(2,)]
    assert "a" in found.models
