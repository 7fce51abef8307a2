"""Local shapes equal those of torch's DTensor; every element is held where it should be."""

import itertools
import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.distributed.tensor import Replicate as TorchReplicate
from torch.distributed.tensor import Shard as TorchShard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from blocks.sharding import (
    Mesh,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    parse_placement,
    run_of,
    torch_placements,
)
from blocks.sharding.reference import gather, shard

MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2), Mesh.of(a=2, b=3), Mesh.of(a=2, b=2, c=2))


KINDS = (Replicate(), Shard(0), Shard(1), Partial())
SPECS = [
    ShardingSpec(mesh, placements)
    for mesh in MESHES
    for placements in itertools.product(KINDS, repeat=len(mesh.axes))
]
SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(spec=st.sampled_from([s for s in SPECS if not s.has_partial]), shape=SHAPES)
def test_runs_are_those_of_dtensor(spec: ShardingSpec, shape: tuple[int, int]) -> None:
    placements = torch_placements(spec)
    for rank in spec.mesh.ranks:
        local, offset = _compute_local_shape_and_global_offset(
            shape, spec.mesh.sizes, lambda axis, r=rank: spec.mesh.coordinates(r)[axis], placements
        )
        runs = spec.runs(shape, rank)
        assert spec.local_shape(shape, rank) == tuple(local)
        if math.prod(local):  # where an empty run begins is a matter of taste
            assert tuple(run.start for run in runs) == tuple(offset)


@given(spec=st.sampled_from(SPECS), shape=SHAPES)
def test_gather_undoes_shard(spec: ShardingSpec, shape: tuple[int, int]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    parts = shard(whole, spec)
    for rank, part in zip(spec.mesh.ranks, parts, strict=True):
        assert tuple(part.shape) == spec.local_shape(shape, rank)
    assert torch.equal(gather(parts, spec), whole)


@given(size=st.integers(0, 40), num_ranks=st.integers(1, 9))
def test_runs_are_those_of_chunk(size: int, num_ranks: int) -> None:
    runs = [run_of(size, num_ranks, i) for i in range(num_ranks)]
    expected = [len(piece) for piece in torch.arange(size).chunk(num_ranks) if len(piece)]
    assert [run.size for run in runs if run.size] == expected
    assert [i for run in runs for i in range(*run)] == list(range(size))


@given(spec=st.sampled_from(SPECS))
def test_json_and_text_both_ways(spec: ShardingSpec) -> None:
    assert ShardingSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert [parse_placement(str(p)) for p in spec.placements] == list(spec.placements)
    ours, torchs = spec.placements, torch_placements(spec)
    assert [str(p) for p in ours] == [str(p) for p in torchs]
    assert [repr(p) for p in ours] == [repr(p) for p in torchs]


def test_axes_of_a_dim_are_outermost_first() -> None:
    mesh = Mesh.of(a=2, b=2, c=2)
    spec = ShardingSpec.of(mesh, a=Shard(1), c=Shard(1), b=Partial())
    assert spec.axes_of(1) == ("a", "c")
    assert spec.axes_of(0) == ()
    assert spec.has_partial
    assert not spec.replace("b", Replicate()).has_partial


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShardingSpec(Mesh.of(a=2), ()), "one for each"),
        (lambda: ShardingSpec.of(Mesh.of(a=2), b=Shard(0)), "axis"),
        (lambda: ShardingSpec.of(Mesh.of(a=2), a=Shard(2)).runs((3, 3), 0), "sharded dim"),
        (lambda: Shard(-1), "tensor dim from 0"),
        (lambda: parse_placement("S"), "placement"),
        (lambda: run_of(4, 2, 2), "index"),
        (lambda: ShardingSpec.from_json({}), "spec"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_torch_names() -> None:
    spec = ShardingSpec.of(Mesh.of(a=2, b=2), a=Shard(1))
    assert torch_placements(spec) == (TorchShard(1), TorchReplicate())
