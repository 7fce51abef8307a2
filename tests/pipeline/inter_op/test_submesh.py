"""Submesh shapes, and that every choice of them has a place."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import SubmeshShape, submeshes
from blocks.pipeline.inter_op import cover


def draw_cluster(draw):
    """Hosts, devices of each, kinds, and shapes that use all devices of every kind."""
    num_hosts, per_host = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
    kinds = draw(
        st.one_of(
            st.just(()),
            st.lists(st.sampled_from("ab"), min_size=num_hosts, max_size=num_hosts).map(tuple),
        )
    )
    shapes = submeshes(num_hosts, per_host, kinds=kinds)
    left = {kind: (kinds.count(kind) or num_hosts) * per_host for kind in kinds or ("",)}
    chosen = []
    while any(left.values()):
        fits = [shape for shape in shapes if shape.size <= left[shape.kind]]
        chosen.append(draw(st.sampled_from(fits)))
        left[chosen[-1].kind] -= chosen[-1].size
    return num_hosts, per_host, kinds, draw(st.permutations(chosen))


@given(st.data())
def test_any_shapes_that_add_up_tile_the_cluster(data):
    num_hosts, per_host, kinds, shapes = draw_cluster(data.draw)
    placed = cover(shapes, num_hosts, per_host, kinds=kinds)
    assert sorted(sum(placed, ())) == list(range(num_hosts * per_host))
    some = data.draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
    some = list(itertools.compress(shapes, some))
    for chosen in (shapes, some):  # and so do fewer of them, without the tiling
        placed = cover(chosen, num_hosts, per_host, kinds=kinds)
        assert len(set(sum(placed, ()))) == sum(shape.size for shape in chosen)
        for shape, devices in zip(chosen, placed, strict=True):
            hosts = [device // per_host for device in devices]
            assert len(devices) == shape.size
            assert len(set(hosts)) == shape.num_hosts, "whole hosts, or inside one"
            assert all(hosts.count(host) == shape.num_devices for host in hosts)
            assert all((kinds[host] if kinds else "") == shape.kind for host in hosts)


def test_stages_keep_their_order_where_they_can():
    shapes = [SubmeshShape(1, 4), SubmeshShape(1, 2), SubmeshShape(1, 2), SubmeshShape(2, 8)]
    assert cover(shapes, 3, 8)[:3] == ((0, 1, 2, 3), (4, 5), (6, 7))


def test_shapes_of_a_large_cluster():
    assert len(submeshes(64, 8)) == 4 + 63
    sizes = [shape.size for shape in submeshes(64, 8, only_powers_of_two=True)]
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert [shape.size for shape in submeshes(3, 8, only_powers_of_two=True)] == [
        1,
        2,
        4,
        8,
        16,
        24,
    ]
    assert json.loads(json.dumps(submeshes(1, 2))) == [[1, 1, ""], [1, 2, ""]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([SubmeshShape(1, 3)], r"submesh: expected one of \[1x1, 1x2, 1x4, 2x4\], got 1x3"),
        ([SubmeshShape(2, 2)], "got 2x2"),
        ([SubmeshShape(2, 4), SubmeshShape(1, 1)], "devices of the submeshes: expected at most 8"),
        ([SubmeshShape(1, 1, "h100")], "got 1x1 h100"),
    ],
)
def test_what_has_no_place_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        cover(shapes, 2, 4)


def test_a_kind_is_named_where_it_runs_out():
    shapes = [SubmeshShape(1, 2, "a")] * 2
    with pytest.raises(ValueError, match="of kind a: expected at most 2, got 4"):
        cover(shapes, 2, 2, kinds=("a", "b"))
    with pytest.raises(ValueError, match="kinds: expected one for each of 2 hosts, got 1"):
        submeshes(2, 2, kinds=("a",))
