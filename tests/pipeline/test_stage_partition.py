"""Layers to stages against brute force."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import StagePartition, partition_layers
from tests.pipeline import brute_force

layers = st.lists(st.integers(0, 30), min_size=1, max_size=8)


def every_bounds(num_layers: int, num_stages: int) -> list[tuple[int, ...]]:
    return [b for b in brute_force.every_bounds(num_layers, 1) if len(b) == num_stages + 1]


def stage_sums(values, bounds, first=0, last=0) -> list[int]:
    sums = [sum(values[i:j]) for i, j in itertools.pairwise(bounds)]
    sums[0] += first
    sums[-1] += last
    return sums


@given(layers, st.data(), st.integers(0, 60), st.integers(0, 60))
def test_the_slowest_stage_is_as_fast_as_can_be(costs, data, first, last):
    num_stages = data.draw(st.integers(1, len(costs)))
    found = partition_layers(costs, num_stages, first_cost=first, last_cost=last)
    every = [stage_sums(costs, b, first, last) for b in every_bounds(len(costs), num_stages)]
    assert list(found.costs_s) == stage_sums(costs, found.bounds, first, last)
    assert found.bottleneck_s == min(max(sums) for sums in every)
    even = min(sum(x * x for x in s) for s in every if max(s) == found.bottleneck_s)
    assert sum(x * x for x in found.costs_s) == even


@given(layers, st.data(), st.integers(0, 40))
def test_every_stage_keeps_to_its_memory_cap(costs, data, head):
    num_stages = data.draw(st.integers(1, len(costs)))
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=len(costs), max_size=len(costs)))
    caps = data.draw(st.lists(st.integers(0, 80), min_size=num_stages, max_size=num_stages))
    every = [
        b
        for b in every_bounds(len(costs), num_stages)
        if all(x <= cap for x, cap in zip(stage_sums(sizes, b, 0, head), caps, strict=True))
    ]
    options = {"memory": sizes, "last_memory": head, "memory_cap": caps}
    if not every:
        with pytest.raises(ValueError, match=r"memory_cap.*hold fewer microbatches"):
            partition_layers(costs, num_stages, **options)
        return
    found = partition_layers(costs, num_stages, **options)
    assert list(found.stage_bytes) == stage_sums(sizes, found.bounds, 0, head)
    assert found.bottleneck_s == min(max(stage_sums(costs, b)) for b in every)
    assert all(need <= cap for need, cap in zip(found.stage_bytes, caps, strict=True))


@given(st.integers(1, 7), st.data(), st.integers(1, 9))
def test_costs_of_whole_stages_are_not_sums_of_layers(num_layers, data, num_microbatches):
    num_stages = data.draw(st.integers(1, num_layers))
    spans = [
        (i, j, k)
        for k in range(num_stages)
        for i in range(num_layers)
        for j in range(i + 1, num_layers + 1)
    ]
    drawn = data.draw(st.lists(st.integers(0, 50), min_size=len(spans), max_size=len(spans)))
    cost = dict(zip(spans, drawn, strict=True))

    def seconds(bounds) -> int:
        each = [cost[i, j, k] for k, (i, j) in enumerate(itertools.pairwise(bounds))]
        return sum(each) + (num_microbatches - 1) * max(each)

    found = partition_layers(
        [0] * num_layers,
        num_stages,
        stage_cost=lambda first, stop, stage: cost[first, stop, stage],
        num_microbatches=num_microbatches,
    )
    assert seconds(found.bounds) == min(map(seconds, every_bounds(num_layers, num_stages)))


def test_stages_hold_as_many_microbatches_as_1f1b_keeps_alive():
    """Four equal stages do not fit; earlier stages give layers to later ones."""

    def needed(first: int, stop: int, stage: int) -> int:
        return (stop - first) * (4 - stage)

    found = partition_layers([1] * 8, 4, memory=needed, memory_cap=6)
    assert found.num_layers == (1, 2, 2, 3)
    assert found.stage_bytes == (4, 6, 4, 3)


def test_a_head_as_dear_as_three_layers_takes_their_place():
    assert partition_layers([1] * 13, 4, last_cost=3).num_layers == (4, 4, 4, 1)


def test_partitions_travel_as_json():
    found = partition_layers([1, 2, 3], 2, memory=[1, 1, 1], memory_cap=2)
    assert StagePartition.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"at least 3, got 2; every stage holds"):
        partition_layers([1, 1], 3)
    with pytest.raises(ValueError, match="memory and memory_cap"):
        partition_layers([1, 1], 2, memory=[1, 1])
    with pytest.raises(ValueError, match="layer_costs of layer 1: expected at least 0"):
        partition_layers([1, -1], 2)
    with pytest.raises(ValueError, match="2 numbers, got 1"):
        partition_layers([1, 1], 2, memory=[1, 1], memory_cap=[4])
