"""Placements: data both ways, and what is wrong with one by name and number."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.placement import Group, Placement, Problem, group_bytes
from blocks.sched.profile import Configuration, bundled_profile, single_pass

names = st.sampled_from(["bert", "gpt two", "ü/x", "c"])


@st.composite
def groups(draw: st.DrawFn) -> Group:
    models = tuple(draw(st.lists(names, unique=True)))
    kv_tokens = tuple(draw(st.integers(0, 10**6)) for _ in models) if draw(st.booleans()) else ()
    configuration = Configuration(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    devices = tuple(draw(st.lists(st.integers(0, 99), unique=True)))
    return Group(devices, configuration, models, kv_tokens)


@given(st.lists(groups()))
def test_json_and_back(drawn: list[Group]) -> None:
    placement = Placement(tuple(drawn))
    assert Placement.from_json(json.loads(json.dumps(placement.to_json()))) == placement
    assert len(str(placement).splitlines()) == len(drawn)


def test_files_and_their_complaints(tmp_path: Path) -> None:
    placement = Placement.equal_groups(4, Configuration(2, 2), [["a"]])
    placement.save(tmp_path / "p.json")
    assert Placement.load(tmp_path / "p.json") == placement
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(ValueError, match=r"placement file .*: expected JSON"):
        Placement.load(tmp_path / "p.json")
    good = placement.to_json()
    with pytest.raises(ValueError, match="placement version: expected 1, got 2"):
        Placement.from_json(good | {"version": 2})
    with pytest.raises(ValueError, match=r"groups\[0\]: expected the keys"):
        Placement.from_json(good | {"groups": [{"devices": [1]}]})
    with pytest.raises(ValueError, match="configuration: expected op x pp"):
        Placement.from_json(good | {"groups": [good["groups"][0] | {"configuration": "2,2"}]})


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("version",), None, 'placement version: expected 1, got none; write "version": 1'),
        (("version",), True, "placement version: expected 1, got True"),
        (("version",), 1.0, "placement version: expected 1, got 1.0"),
        (("groups",), {"0": {}}, "groups: expected a list of groups, got dict"),
        (("groups", 0), 3, "groups[0]: expected the keys"),
        (("groups", 0, "models"), "ab", "groups[0].models: expected a list of names, got 'ab'"),
        (("groups", 0, "models"), ["a", 3], "groups[0].models[1]: expected one of names, got 3"),
        (("groups", 0, "models"), [""], "groups[0].models[0]: expected one of names, got ''"),
        (("groups", 0, "devices"), [1.7], "groups[0].devices[0]: expected one of whole numbers"),
        (("groups", 0, "devices"), ["1"], "groups[0].devices[0]: expected one of whole numbers"),
        (("groups", 0, "devices"), [True], "got True; write it as [0, 1]"),
        (("groups", 0, "devices"), [-1], "groups[0].devices[0]: expected one of whole numbers"),
        (("groups", 0, "devices"), "01", "groups[0].devices: expected a list of whole numbers"),
        (("groups", 0, "kv_tokens"), [1e9], "groups[0].kv_tokens[0]: expected one of whole"),
        (("groups", 0, "configuration"), 2, "groups[0].configuration: expected a text such as"),
    ],
)  # fmt: skip
def test_nothing_is_taken_for_what_it_is_not(path, value, told) -> None:
    data = Placement.equal_groups(2, Configuration(2, 1), [["a"]]).to_json()
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    with pytest.raises(ValueError) as refused:
        Placement.from_json(data)
    assert told in str(refused.value)
    assert "expected" in str(refused.value)
    assert "got" in str(refused.value)


PROFILES = {
    "a": single_pass("a", "d", {(1, 1): [1.0], (1, 2): [0.5, 0.5]}, 2000),
    "b": single_pass("b", "d", {(1, 1): [1.0], (1, 2): [0.5, 0.5]}, 3000),
}


def test_memory_is_the_sum_of_the_largest_stages() -> None:
    placement = Placement.equal_groups(2, Configuration(1, 2), [["a", "b"]])
    assert group_bytes(placement.groups[0], PROFILES) == 2500
    assert placement.problems(PROFILES, 2500, num_devices=2) == ()
    (found,) = placement.problems(PROFILES, 2400)
    assert (found.kind, found.group, found.shortfall) == ("memory", 0, 100)
    assert str(found) == "group 0: memory: 2,500 bytes a device for 2 models, 2,400 there"


def test_published_budget_holds_five_of_the_published_model() -> None:
    profiles = {f"bert {i}": bundled_profile("bert-1.3b") for i in range(6)}
    alone = Placement.equal_groups(1, Configuration(1, 1), [list(profiles)[:5]])
    budget = 13 * 2**30
    assert alone.problems(profiles, budget) == ()
    (found,) = alone.hosting("bert 5", 0).problems(profiles, budget)
    assert found.shortfall == 6 * 2626 * 10**6 - budget


def test_everything_wrong_is_named() -> None:
    placement = Placement(
        (
            Group((0, 1, 2), Configuration(1, 2), ("a", "a", "x")),
            Group((2, 9), Configuration(2, 1), ("a",)),
            Group((4,), Configuration(1, 1), ("a", "b"), (5,)),
            Group((5,), Configuration(1, 1), ("a", "b"), (5, 0)),
        )
    )
    kinds = [(one.kind, one.group, one.shortfall) for one in placement.problems(PROFILES, 10**6, 8)]
    assert kinds == [
        ("devices", 0, -1),
        ("hosted twice", 0, 0),
        ("no profile", 0, 0),
        ("no configuration", 1, 0),
        ("kv_tokens", 2, 0),
        ("shared device", -1, 0),
        ("unknown device", 1, 0),
    ]
    assert all(isinstance(one, Problem) for one in placement.problems(PROFILES, 0))


def test_replicas_come_one_by_one() -> None:
    placement = Placement.equal_groups(3, Configuration(1, 1)).hosting("a", 1).hosting("a", 2, 7)
    assert placement.groups_of("a") == (1, 2)
    assert [group.kv_tokens for group in placement.groups] == [(), (), (7,)]
    assert placement.hosting("b", 2).groups[2].kv_tokens == (7, 0)
    assert placement.groups[2].kv_tokens_of("a") == 7
    assert placement.models == ("a",)
    with pytest.raises(ValueError, match="not hosted yet"):
        placement.hosting("a", 1)
    both = placement.beside(Placement((Group((3,), Configuration(1, 1), ("b",)),)))
    assert both.num_devices == 4
    assert both.groups_of("b") == (3,)
