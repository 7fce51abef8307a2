"""The form of a schedule: what it refuses, what must precede what, and its JSON."""

import json

import pytest

from blocks.pipeline import Action, Kind, Schedule
from blocks.pipeline.schedule import chunks_of


def two_stages() -> Schedule:
    programs = []
    for stage in range(2):
        forward = [Action(Kind.FORWARD, stage, 0, 0, piece) for piece in range(2)]
        backward = [Action(Kind.FULL_BACKWARD, stage, 0, 0, piece) for piece in (1, 0)]
        programs.append((*forward, *backward))
    return Schedule("two", (0, 1), (2,), tuple(programs))


def test_json_brings_the_schedule_back() -> None:
    schedule = two_stages()
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


@pytest.mark.parametrize("text", ["F2(3,5)", "BW10(0,11)", "SF0>1(3,5)", "RB7>9(1,2)", "W0(0,0)"])
def test_text_of_an_action_reads_back(text: str) -> None:
    assert repr(Action.parse(text, 0)) == text


@pytest.mark.parametrize("text", ["", "X1(0,0)", "F(0,0)", "F1(0)", "F1(0,0) ", "F-1(0,0)"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="action: expected a text like"):
        Action.parse(text, 0)


def test_what_must_come_first() -> None:
    schedule = two_stages()
    said = {repr(a): str(schedule.needs(a)) for program in schedule.programs for a in program}
    assert said["F1(0,1)"] == "[F0(0,1), F1(0,0)]"
    assert said["BW0(0,0)"] == "[F0(0,0), B1(0,0), B0(0,1)]"
    assert said["BW1(0,1)"] == "[F1(0,1)]"
    weight = Action(Kind.WEIGHT, 1, 0, 0, 1)
    assert str(schedule.needs(weight)) == "[B1(0,1)]"


def test_skip_inputs_are_edges() -> None:
    schedule = Schedule("skip", (0, 1, 0), (1,), ((), ()), ((0, 1), (1, 2), (0, 2)))
    assert schedule.sources(2) == (0, 1)
    assert schedule.targets(0) == (1, 2)
    assert schedule.chunks == (0, 0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"placement": (0, 2)}, "placement: expected stages on each of the ranks"),
        ({"edges": ((0, 1), (0, 1))}, "edges: expected each once, got"),
        ({"edges": ((1, 0),)}, "edge: expected an earlier and a later stage"),
        ({"programs": ((Action(Kind.FORWARD, 1, 0, 0, 0),), ())}, "a stage of that rank"),
        ({"num_slices": (-1,)}, "num_slices: expected a positive whole number, got -1"),
        ({"programs": ((Action(Kind.FORWARD, 0, 1, 0, 0),), ())}, "chunk of F0"),
        ({"programs": ((Action(Kind.FORWARD, 0, 0, 1, 0),), ())}, "sequence of F0"),
        ({"programs": ((Action(Kind.FORWARD, 0, 0, 0, 2),), ())}, "slice of F0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, said: str) -> None:
    fields = {"name": "x", "placement": (0, 1), "num_slices": (2,), "programs": ((), ())}
    with pytest.raises(ValueError, match=said):
        Schedule(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None, "more": 1}, "schedule: expected no further keys, got"),
        ({"programs": 3}, "schedule: expected values of the right kinds"),
        ({"programs": [[3], []]}, "schedule: expected values of the right kinds"),
        ({"placement": None}, "schedule: expected values of the right kinds"),
    ],
)
def test_foreign_data_is_refused(change: dict, said: str) -> None:
    data = Schedule("x", (0, 1), (2,), ((), ())).to_json()
    with pytest.raises(ValueError, match=said):
        Schedule.from_json({**data, **change})


def test_chunks_count_the_stages_of_a_rank() -> None:
    assert chunks_of((0, 1, 2, 2, 1, 0)) == (0, 0, 0, 1, 1, 1)
