"""Models on demand: who makes room for whom, when, and what a request is told meanwhile."""

import pytest

from blocks.sched.cluster_sim.generation import EngineSettings
from blocks.sched.placement import Placement
from recipes.place.fleet import Ask, Capacity, Desk, Fleet, Load, Nowhere, Part, Route, Router, Slo
from recipes.place.fleet.drift import Traffic
from tests.place.fleet.clusters import BLOCK_SIZE, MEMORY, NAMES, PROFILES, group

SETTINGS = EngineSettings(token_budget=64, max_num_seqs=4, block_size=BLOCK_SIZE, overlap=False)


def desk(least_stay_s: float) -> Desk:
    """One device with ``a`` on it, and room for nothing beside it but ``d``."""
    capacity = Capacity(PROFILES, MEMORY, dict.fromkeys(NAMES, 20), BLOCK_SIZE)
    placement = Placement((group([0], "a"),))
    fleet = Fleet(placement, capacity, 1, Router(SETTINGS), least_stay_s=least_stay_s)
    made = Desk(fleet, Traffic(NAMES, 60.0))
    carry_out(made, 0.0)
    return made


def carry_out(made: Desk, now_s: float, load_s: float = 0.0) -> None:
    """A round in which everything succeeds, and loads take their time."""
    for action in made.fleet.steps(now_s):
        assert made.fleet.begin(action, now_s) is not None
        now_s += load_s if isinstance(action, Load) else 0.0
        made.fleet.done(action, now_s)
    made.check_invariants()


def ask(made: Desk, model: str, now_s: float) -> Route | Nowhere:
    """One that is answered at once, if its model is there."""
    part = Part(f"{model}@{now_s}", 5)
    found = made.ask(Ask(model, (part,), 20, Slo()), now_s)
    assert isinstance(found, Route | Nowhere)
    if isinstance(found, Route):
        made.gain(part.part_id, 0, 5, over=True)
    return found


@pytest.mark.parametrize(("least_stay_s", "most_loads"), [(0.0, 601), (5.0, 13), (20.0, 4)])
def test_models_that_are_asked_for_in_turns_are_not_loaded_at_every_request(
    least_stay_s, most_loads
):
    made = desk(least_stay_s)
    served = {"a": 0, "b": 0}
    for tick in range(600):  # a minute
        now_s = tick / 10
        for model in ("ab", "ba")[tick % 2]:
            found = ask(made, model, now_s)
            served[model] += isinstance(found, Route)
            carry_out(made, now_s)
    loads = made.fleet.counts["loads"]
    assert loads <= most_loads
    assert min(served.values()) >= 150, "both have their time"
    if not least_stay_s:
        assert loads > 500, "which without a least stay is what would happen"


def test_who_has_to_wait_is_told_for_how_long():
    made = desk(10.0)
    assert ask(made, "b", 3.0) == Nowhere(False, "no device has room for it", 7.0)
    assert ask(made, "b", 10.0) == Nowhere(True)
    carry_out(made, 10.0, load_s=2.0)
    assert isinstance(ask(made, "b", 12.0), Route)
    waits = ask(made, "a", 12.0)
    assert isinstance(waits, Nowhere)
    assert waits.wait_s == 10.0  # the first load of a took no time
    assert ask(made, "a", 22.0) == Nowhere(True)
    carry_out(made, 22.0)
    again = ask(made, "b", 23.0)
    assert isinstance(again, Nowhere)
    assert again.wait_s == 9.0 + 2.0, "b takes two seconds to load"


def test_nobody_waits_for_what_does_not_idle_or_beside_room():
    made = desk(10.0)
    busy = Ask("a", (Part("busy", 5),), 20, Slo())
    assert isinstance(made.ask(busy, 1.0), Route)
    assert ask(made, "b", 2.0) == Nowhere(False, "no device has room for it", None)
    assert ask(made, "d", 2.0) == Nowhere(True), "there is room beside a"
    made.forget(busy)


def test_a_clock_that_is_set_back_and_an_operator_end_the_stay():
    made = desk(10.0)
    assert not made.fleet.want("b", 5.0)
    assert made.fleet.want("b", -100.0)
    made = desk(10.0)
    assert made.fleet.want("b", 5.0, at_once=True)


@pytest.mark.parametrize("kept", ["c", "d"])
def test_of_two_that_idle_the_one_that_was_used_last_stays(kept):
    """Either of them would make room enough."""
    capacity = Capacity(PROFILES, MEMORY, dict.fromkeys(NAMES, 20), BLOCK_SIZE)
    fleet = Fleet(Placement((group([0], "c", "d"),)), capacity, 1, Router(SETTINGS))
    made = Desk(fleet, Traffic(NAMES, 60.0))
    carry_out(made, 0.0)
    for now_s, model in enumerate(["c", "d", kept], 1):
        assert isinstance(ask(made, model, float(now_s)), Route)
    assert ask(made, "b", 5.0) == Nowhere(True)
    (found,) = made.fleet.desired.groups
    assert found.models == (kept, "b")
