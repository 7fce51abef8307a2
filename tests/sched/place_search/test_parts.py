"""Buckets, device splits, group shapes, memory, and what was found."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sched.place_search import (
    Memory,
    Score,
    Trial,
    bucketings,
    canonical,
    device_splits,
    group_shapes,
    latency_classes,
    mixed_shapes,
)
from blocks.sched.place_search.found import FINALISTS, Found
from blocks.sched.placement import Placement, group_bytes
from blocks.sched.profile import (
    BatchTime,
    Configuration,
    DecodeTime,
    PrefillTime,
    Profile,
    Provenance,
    Timing,
    bundled_profile,
)


def heavier(name: str, index: int) -> Profile:
    """Weights and activations that grow with the index."""
    scaled = bundled_profile("bert-1.3b").scaled(name, weight=1 + index / 3, why="a case")
    more = [dataclasses.replace(t, activation_bytes=10**9 * index) for t in scaled.timings]
    return dataclasses.replace(scaled, timings=tuple(more))


SCALED = {name: heavier(name, index) for index, name in enumerate("abcd")}
LATENCIES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 10), min_size=1)


@given(LATENCIES, st.floats(0, 2))
def test_models_of_like_latency_stay_together(
    latency_s: dict[str, float], threshold: float
) -> None:
    classes = latency_classes(latency_s, threshold)
    ordered = [model for one in classes for model in one]
    assert sorted(ordered) == sorted(latency_s)
    following: tuple[str, ...]
    for one, following in zip(classes, (*classes[1:], ()), strict=True):
        limit_s = latency_s[one[0]] * (1 + threshold)
        assert all(latency_s[one[0]] <= latency_s[model] <= limit_s for model in one)
        assert all(latency_s[model] > limit_s for model in following)


def test_every_way_to_join_neighbouring_classes() -> None:
    found = list(bucketings(("a", "b", "c", "d")))
    assert len(found) == len(set(found)) == 2**3
    assert all("".join(itertools.chain(*buckets)) == "abcd" for buckets in found)
    assert found[0] == (("a", "b", "c", "d"),)
    assert {len(buckets) for buckets in bucketings("abcd", most=2)} == {1, 2}


@given(
    st.integers(1, 24),
    st.lists(st.floats(0, 10), min_size=1, max_size=4),
    st.integers(1, 100),
)
def test_splits_use_every_device_and_are_few_and_near_the_load(
    num_devices: int, loads: list[float], few: int
) -> None:
    splits = device_splits(num_devices, loads, few)
    assert bool(splits) == (len(loads) <= num_devices)
    assert len(splits) <= max(1, few)
    assert len({tuple(split) for split in splits}) == len(splits)
    for split in splits:
        assert sum(split) == num_devices
        assert min(split) >= 1
    total = sum(loads)
    if splits and total:
        shares = [load / total for load in loads]
        far = [
            sum(
                abs(count / num_devices - share) for count, share in zip(split, shares, strict=True)
            )
            for split in splits
        ]
        assert far == sorted(far)


def test_all_splits_where_they_are_few() -> None:
    everything = {(a, b, 6 - a - b) for a in range(1, 5) for b in range(1, 6 - a)}
    assert {tuple(split) for split in device_splits(6, [1, 1, 1])} == everything


@given(st.integers(1, 40), st.sets(st.sampled_from([(1, 1), (1, 2), (2, 2), (2, 4), (1, 8)])))
def test_shapes_fill_the_devices_with_one_configuration_and_leftovers(
    num_devices: int, pairs: set[tuple[int, int]]
) -> None:
    configurations = [Configuration(*pair) for pair in pairs]
    shapes = list(group_shapes(num_devices, configurations))
    assert len(shapes) == sum(1 for one in configurations if one.num_devices <= num_devices)
    for shape in shapes:
        used = sum(one.num_devices for one in shape)
        assert used <= num_devices
        assert shape.count(shape[0]) >= num_devices // shape[0].num_devices
        if (1, 1) in pairs and (1, 2) in pairs and (2, 2) in pairs:
            assert used == num_devices or num_devices >= 8


@given(st.integers(1, 7), st.sets(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 3), (2, 2)])))
def test_mixed_shapes_are_all_that_leave_no_room_for_one_more(
    num_devices: int, pairs: set[tuple[int, int]]
) -> None:
    configurations = [Configuration(*pair) for pair in sorted(pairs)]
    smallest = min((one.num_devices for one in configurations), default=num_devices + 1)
    expected = {
        tuple(sorted(shape))
        for count in range(num_devices + 1)
        for shape in itertools.combinations_with_replacement(configurations, count)
        if 0 <= num_devices - sum(one.num_devices for one in shape) < smallest
    }
    found = mixed_shapes(num_devices, configurations, 10**6)
    if not pairs or smallest > num_devices:
        assert found in ([], [()])
        return
    assert len(found) == len(expected)
    assert {tuple(sorted(shape)) for shape in found} == expected
    assert mixed_shapes(num_devices, configurations, len(found)) == found
    assert mixed_shapes(num_devices, configurations, len(found) - 1) == []


@settings(max_examples=20)
@given(st.lists(st.sampled_from("abcd"), unique=True), st.integers(-1, 1))
def test_memory_agrees_with_the_placement(models: list[str], more_bytes: int) -> None:
    placement = Placement.equal_groups(2, Configuration(1, 2), [models])
    memory_bytes = max(1, group_bytes(placement.groups[0], SCALED) + more_bytes)
    memory = Memory(SCALED, memory_bytes)
    fits = not placement.problems(SCALED, memory_bytes)
    assert fits == (more_bytes >= 0 or not models)
    assert memory.holds(Configuration(1, 2), models) == fits
    assert not memory.holds(Configuration(3, 2), ["a"]), "it was not timed so"
    group = placement.groups[0]._replace(models=tuple(models[1:]))
    if models:
        assert memory.fits(group, models[0]) == fits
        assert not memory.fits(placement.groups[0], models[0])


def generating(name: str, kv_bytes: int) -> Profile:
    timing = Timing(
        Configuration(1, 1),
        (100,),
        activation_bytes=10,
        kv_bytes_per_token=kv_bytes,
        prefill=(PrefillTime(1, (0.1,)),),
        decode=(DecodeTime(1, 1, (0.1,)),),
    )
    return Profile(name, "test", (Provenance("derived", "a case"),), (timing,))


def test_room_that_is_left_goes_to_caches() -> None:
    single = Timing(Configuration(1, 1), (50,), batches=(BatchTime(1, (0.1,)),))
    profiles = {
        "a": generating("a", 2),
        "b": generating("b", 5),
        "c": Profile("c", "test", (Provenance("derived", "a case"),), (single,)),
    }
    memory = Memory(profiles, 400, {"a": 5})
    placement = Placement.equal_groups(2, Configuration(1, 1), [["a", "b", "c"], ["c"]])
    roomy = memory.with_rooms(placement)
    assert roomy.groups[0].kv_tokens == (5 + 65 // 2 + 0, 65 // 5, 0)
    assert roomy.groups[1] == placement.groups[1]
    assert roomy.problems(profiles, 400) == ()
    assert memory.holds(Configuration(1, 1), ["a"])
    assert not Memory(profiles, 119, {"a": 5}).holds(Configuration(1, 1), ["a"])


def test_splits_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="loads"):
        device_splits(4, [])
    assert device_splits(2, [1, 1, 1]) == []


def test_finalists_are_the_best_of_different_shapes() -> None:
    def trial(attainment: float, *sizes: int) -> Trial:
        groups = ((Configuration(1, size), "m") for size in sizes)
        return Trial(canonical(groups), Score(attainment), {}, ())

    found = Found()
    found.add("low", [trial(0.1, 1, 1), trial(0.4, 2)])
    found.add("none", [])
    found.add("high", [trial(0.9, 1, 1), trial(0.4, 2), *(trial(0.2, n) for n in range(3, 9))])
    best = found.finalists()
    assert [one.score.attainment for one in best] == [0.9, 0.4, *[0.2] * 4]
    assert len({one.placement.groups for one in best}) == FINALISTS
    assert {way: one.score.attainment for way, one in found.tops().items()} == {
        "low": 0.4,
        "high": 0.9,
    }
