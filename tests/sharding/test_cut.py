"""Cuts: everything is held, put together again, and what is shared is summed once."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from blocks.sharding import (
    Cut,
    Group,
    Run,
    cut_tensor,
    gather_cut,
    join_tensors,
    run_local,
    sum_shared,
)
from tests.sharding.spmd import line

UNITS = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=2, max_size=3)


def make_cut(units: list[list[int]], dim: int = 0) -> Cut:
    """Every unit below the largest is held at least once."""
    most = max([0, *itertools.chain(*units)])
    missing = sorted(set(range(most + 1)) - set(itertools.chain(*units)))
    return Cut.of_units(dim, 2, [[*units[0], *missing], *units[1:]])


@given(units=UNITS, dim=st.integers(0, 1))
def test_parts_make_the_whole(units: list[list[int]], dim: int) -> None:
    cut = make_cut(units, dim)
    shape = [3, 3]
    shape[dim] = cut.size
    whole = torch.randn(shape)
    parts = [cut_tensor(whole, cut, rank) for rank in range(cut.num_ranks)]
    for rank, part in enumerate(parts):
        assert tuple(part.shape) == cut.local_shape(shape, rank)
    assert torch.equal(join_tensors(parts, cut), whole)
    owned = [
        parts[rank].narrow(dim, run.start, run.size)
        for rank in range(cut.num_ranks)
        for run in cut.owned(rank)
    ]
    pieces = torch.cat(owned, dim)
    assert pieces.shape == whole.shape, "everything is owned once"
    assert pieces.double().square().sum() == pytest.approx(whole.double().square().sum())


@given(units=UNITS)
def test_copies_get_the_sum_of_their_gradients(units: list[list[int]]) -> None:
    cut = make_cut(units)
    generator = torch.Generator().manual_seed(len(units))
    parts = [
        torch.randint(-9, 9, (cut.local_size(rank), 2), generator=generator).double()
        for rank in range(cut.num_ranks)
    ]
    total = torch.zeros(cut.size, 2, dtype=torch.float64)
    for rank, part in enumerate(parts):
        offset = 0
        for run in cut.runs[rank]:
            total[run.start : run.stop] += part[offset : offset + run.size]
            offset += run.size

    def work(rank: int, groups: Mapping[str, Group]) -> tuple[Tensor, Tensor]:
        grad = parts[rank].clone()
        sum_shared(grad, cut, groups["tensor"])
        return grad, gather_cut(grad, cut, groups["tensor"])

    for rank, (grad, whole) in enumerate(run_local(line(cut.num_ranks), work)):
        assert torch.equal(grad, cut_tensor(total, cut, rank))
        assert torch.equal(whole, total)


@given(units=UNITS)
def test_json_both_ways(units: list[list[int]]) -> None:
    cut = make_cut(units)
    assert Cut.from_json(json.loads(json.dumps(cut.to_json()))) == cut


@given(size=st.integers(1, 9), num_ranks=st.integers(1, 4))
def test_an_even_cut_is_a_chunk(size: int, num_ranks: int) -> None:
    cut, whole = Cut.even(0, size, num_ranks), torch.arange(size)
    parts = [cut_tensor(whole, cut, rank) for rank in range(num_ranks)]
    assert [len(p) for p in parts if len(p)] == [len(p) for p in whole.chunk(num_ranks)]
    assert not cut.shared()
    assert cut.local_size(0) == len(parts[0])


def test_parts_and_whole() -> None:
    fused = Cut.of_parts(0, [Cut.even(0, 4, 2), Cut.of_units(0, 2, [[0], [0]])])
    assert fused.runs == ((Run(0, 2), Run(4, 6)), (Run(2, 4), Run(4, 6)))
    assert fused.shared() == {Run(4, 6): [(0, 2), (1, 2)]}
    assert Cut.whole(0, 3, 2).shared() == {Run(0, 3): [(0, 0), (1, 0)]}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cut(-1, 1, ((Run(0, 1),),)), "dim"),
        (lambda: Cut(0, 2, ((Run(0, 3),),)), "inside of 2"),
        (lambda: Cut(0, 2, ((Run(0, 1),), ())), "nothing from 1 on"),
        (lambda: Cut(0, 2, ((Run(1, 2),), ())), "one from 0 on"),
        (lambda: Cut(0, 3, ((Run(0, 2),), (Run(1, 3),))), "one from 2 on"),
        (lambda: Cut.from_json({}), "cut"),
        (lambda: cut_tensor(torch.ones(3), Cut.even(0, 2, 1), 0), "dim 0"),
    ],
)
def test_refusals(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
