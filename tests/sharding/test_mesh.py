"""Meshes are grids: coordinates and groups against plain index arithmetic."""

import itertools
import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from blocks.sharding import Mesh

AXES = ("data", "pipeline", "tensor")


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)


def make_mesh(sizes: list[int], seed: int) -> Mesh:
    """Built in the test: annotations are executed, and may draw random numbers of their own."""
    count = math.prod(sizes)
    ranks = torch.randperm(count + 3, generator=torch.Generator().manual_seed(seed))[:count]
    return Mesh(AXES[: len(sizes)], tuple(sizes), tuple(ranks.tolist()))


@given(sizes=SIZES, seed=SEEDS)
def test_ranks_lie_row_major(sizes: list[int], seed: int) -> None:
    mesh = make_mesh(sizes, seed)
    grid = torch.tensor(mesh.ranks).view(mesh.sizes)
    for at in itertools.product(*map(range, mesh.sizes)):
        rank = int(grid[at])
        assert mesh.rank_at(at) == rank
        assert mesh.coordinates(rank) == at
        assert [mesh.coordinate(rank, axis) for axis in mesh.axes] == list(at)


@given(sizes=SIZES, seed=SEEDS, data=st.data())
def test_groups_part_the_ranks(sizes: list[int], seed: int, data: st.DataObject) -> None:
    mesh = make_mesh(sizes, seed)
    axes = data.draw(st.sets(st.sampled_from(mesh.axes), min_size=1))
    groups = mesh.groups(*axes)
    assert sorted(itertools.chain(*groups)) == sorted(mesh.ranks)
    for group in groups:
        assert len(group) == math.prod(mesh.size(axis) for axis in axes)
        for axis in set(mesh.axes) - axes:
            assert len({mesh.coordinate(rank, axis) for rank in group}) == 1
        for rank in group:
            assert mesh.group(rank, *axes) == group


@given(sizes=SIZES, seed=SEEDS, data=st.data())
def test_a_part_of_a_mesh_keeps_ranks_and_order(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    mesh = make_mesh(sizes, seed)
    axis = data.draw(st.sampled_from(mesh.axes))
    coordinate = data.draw(st.integers(0, mesh.size(axis) - 1))
    part = mesh.at(**{axis: coordinate})
    grid = torch.tensor(mesh.ranks).view(mesh.sizes).select(mesh.index(axis), coordinate)
    assert list(part.ranks) == grid.flatten().tolist()
    assert part.axes == tuple(other for other in mesh.axes if other != axis)


@given(sizes=SIZES, seed=SEEDS)
def test_json_both_ways(sizes: list[int], seed: int) -> None:
    mesh = make_mesh(sizes, seed)
    assert Mesh.from_json(json.loads(json.dumps(mesh.to_json()))) == mesh


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mesh(("a",), (2, 2)), "sizes"),
        (lambda: Mesh(("a", "a"), (2, 2)), "different names"),
        (lambda: Mesh(("a",), (0,)), "size of axis a: expected a positive whole number, got 0"),
        (lambda: Mesh(("a",), (2,), (0, 1, 2)), "2 of them"),
        (lambda: Mesh(("a",), (2,), (1, 1)), "each once"),
        (lambda: Mesh.of(a=2).size("b"), "axis: expected one of"),
        (lambda: Mesh.of(a=2).coordinates(2), "rank: expected one of"),
        (lambda: Mesh.of(a=2).rank_at((2,)), "coordinates"),
        (lambda: Mesh.of(a=2).at(a=2), "coordinate of a"),
        (lambda: Mesh.from_json({"axes": []}), "mesh: expected the keys"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
