"""Predictions by the last word of a group, while it gets older."""

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from blocks.sched.cluster_sim.generation import EngineSettings, Load, Standing, StepTime
from recipes.place.fleet import Router, Seat
from recipes.place.fleet.seat import Word, unheard
from recipes.place.fleet.told_state import told_state
from recipes.place.group import GroupState, ModelState, UnderWay
from tests.place.fleet.clusters import PROFILES, SHAPES

SETTINGS = EngineSettings(token_budget=64, max_num_seqs=4, block_size=4, overlap=False)
LOAD = Load(40, (), 1, 9)
MODELS = ("a", "b", "c")
TIMES = {model: StepTime(PROFILES[model].timing(SHAPES[0])) for model in MODELS}
BUSY, IDLE = Standing(num_decodes=1, context_len=9, num_live=1, live_tokens=9), Standing()


@dataclasses.dataclass
class Group:
    """What a handle tells; ``sent``: prompt lengths since, by model."""

    state: GroupState
    state_s: float = 100.0
    sent: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def unseen(self, model: str) -> tuple[int, ...]:
        return self.sent.get(model, ())


def seen(group: Group | None, now_s: float) -> tuple[Word, Seat]:
    """Of model a, on a group with b and c."""
    router = Router(SETTINGS)
    for model in MODELS:
        timing = PROFILES[model].timing(SHAPES[0])
        router.open((0,), model, timing, kv_tokens=400, max_model_len=300, now_s=0.0)
    seat = router.seat((0,), "a")
    assert seat is not None
    router.take(seat, "x", 11, 1, 0.0)
    return told_state(router, lambda devices: group, lambda: now_s)(seat), seat


def state(
    stands: Mapping[str, Standing] = {}, stepping: str = "", load: Load | None = None
) -> GroupState:
    """Last steps took 1, 2 and 4 seconds."""
    models = {
        model: ModelState("serving", last_step_s=2.0**at, standing=stands.get(model, IDLE))
        for at, model in enumerate(MODELS)
    }
    under_way = () if load is None else (UnderWay(load, 0.002),)
    return GroupState(models, stepping=stepping, under_way=under_way)


def test_of_a_silent_group_all_that_was_sent_waits() -> None:
    for group in (None, Group(GroupState())):
        word, seat = seen(group, 100.0)
        assert word == unheard(seat) == Word(Standing(num_free_blocks=100), (11,))


def test_what_was_sent_since_counts_and_what_was_seen_does_not() -> None:
    word, seat = seen(Group(state({"a": BUSY}), sent={"a": (5, 6)}), 100.0)
    assert word == Word(BUSY, (5, 6))
    assert seat.stands(word).num_prompt == 11


@pytest.mark.parametrize("model", MODELS)
def test_the_step_under_way_is_over_when_its_profile_says_so(model: str) -> None:
    whole_s = sum(TIMES[model](LOAD))
    for passed_s in (0.0, 0.004, whole_s, 9.0):
        word, _ = seen(Group(state({"a": BUSY, "b": BUSY}, model, LOAD)), 100.0 + passed_s)
        assert word.busy_s == pytest.approx(max(0.0, whole_s - 0.002 - passed_s), abs=1e-12)
        assert word.others_s == pytest.approx(whole_s if model == "b" else 2.0)
    assert seen(Group(state({}, "elsewhere", LOAD)), 100.0)[0].busy_s == 0.0


def test_other_models_count_if_they_have_anything_to_do() -> None:
    for busy, sent, others_s in (
        ({}, {}, 0.0),
        ({"a": BUSY}, {"a": (3,)}, 0.0),
        ({"b": BUSY}, {}, 2.0),
        ({"b": BUSY}, {"b": (3,), "c": (1,)}, 6.0),
    ):
        assert seen(Group(state(busy), sent=sent), 100.0)[0].others_s == others_s


# --- batches in stages ----------------------------------------------------------------------------

STAGES = dataclasses.replace(SETTINGS, num_lanes=None)
"""Of SHAPES[2], two stages: a step with prompts takes 5 ms and half a ms a token in each."""


def in_stages(
    under_way: Sequence[tuple[int, float]],
    before: tuple[int, float] | None = None,
    busy: Sequence[str] = ("a",),
    of: str = "a",
) -> float:
    """Until a step of ``of`` enters stage one, while model a has batches of so many tokens under
    way, sent so many seconds ago."""
    router = Router(STAGES)
    for model in MODELS:
        timing = PROFILES[model].timing(SHAPES[2])
        router.open((0, 1), model, timing, kv_tokens=400, max_model_len=300, now_s=0.0)
    seat = router.seat((0, 1), of)
    assert seat is not None

    def told(num_tokens: int, ago_s: float) -> UnderWay:
        return UnderWay(Load(num_tokens, (), 0, 0), ago_s)

    models = {m: ModelState("serving", standing=BUSY if m in busy else IDLE) for m in MODELS}
    group = Group(
        GroupState(
            models,
            stepping="a",
            under_way=tuple(told(*one) for one in under_way),
            before=told(*before) if before else None,
        )
    )
    return told_state(router, lambda devices: group, lambda: 100.0)(seat).busy_s


def test_a_batch_may_follow_when_stage_one_is_free_and_a_lane() -> None:
    assert in_stages([(10, 0.003)]) == pytest.approx(0.007), "10 ms in a stage"
    assert in_stages([(10, 0.012)]) == 0.0
    assert in_stages([(10, 0.003), (10, 0.003)]) == pytest.approx(0.017), "two lanes, both taken"
    assert in_stages([(10, 0.003), (30, 0.003)]) == pytest.approx(0.027), "20 ms behind the first"
    assert in_stages([(30, 0.003), (10, 0.003)]) == pytest.approx(0.037), "stage one is free before"
    assert in_stages([(10, 0.020)], before=(10, 0.001)) == 0.0
    assert in_stages([(30, 0.003)], before=(10, 0.001)) == pytest.approx(0.017)


def test_a_batch_is_behind_the_one_that_was_before_it() -> None:
    """Two were sent at once: one was through after 20 ms, when a third was sent, the other is
    after 30."""
    for ago_s, left_s in ((0.020, 0.010), (0.025, 0.005)):
        since_s = ago_s - 0.020
        busy_s = in_stages([(10, ago_s), (10, since_s)], before=(10, since_s))
        assert busy_s == pytest.approx(left_s)


def test_a_model_that_is_not_alone_waits_for_empty_stages() -> None:
    assert in_stages([(10, 0.003)], of="b") == pytest.approx(0.017)
    assert in_stages([(10, 0.003)], busy="ab") == pytest.approx(0.017)
    assert in_stages([(10, 0.003), (10, 0.003)], of="b") == pytest.approx(0.027)
