"""Devices of a node that are joined lane by lane: rings, cuts, and what they cost."""

import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from blocks.sharding import Mesh, MeshCost
from blocks.sharding.cluster import Cluster, bundled_cluster
from blocks.sharding.cluster.wiring import Lanes, check_lanes, exchange_share, rings

V100 = bundled_cluster("p3.16xlarge").nodes[0].lanes


@st.composite
def wired(draw: st.DrawFn, most: int = 5) -> Lanes:
    """Lanes of 2 to ``most`` devices."""
    count = draw(st.integers(2, most))
    lanes = [[0] * count for _ in range(count)]
    for a, b in itertools.combinations(range(count), 2):
        lanes[a][b] = lanes[b][a] = draw(st.integers(0, 2))
    return tuple(map(tuple, lanes))


def by_brute_force(lanes: Lanes) -> int:
    """The most directed rings: every multiset of cycles, those that use no lane twice."""
    count = len(lanes)
    if count == 2:
        return max(1, lanes[0][1])
    cycles = [
        tuple(sorted(map(sorted, itertools.pairwise((0, *rest, 0)))))
        for rest in itertools.permutations(range(1, count))
        if rest[0] < rest[-1]
    ]
    best = 0
    for many in range(1, 2 * count):
        for chosen in itertools.combinations_with_replacement(cycles, many):
            used = [tuple(edge) for cycle in chosen for edge in cycle]
            if all(used.count((a, b)) <= lanes[a][b] for a, b in set(used)):
                best = many
                break
        if best < many:
            break
    return max(1, 2 * best)


@given(wired())
def test_rings_are_as_many_as_brute_force_finds(lanes: Lanes) -> None:
    devices = tuple(range(len(lanes)))
    assert rings(lanes, devices) == by_brute_force(lanes)


@given(wired(), st.randoms(use_true_random=False))
def test_numbers_of_devices_do_not_matter(lanes: Lanes, draw: random.Random) -> None:
    order = list(range(len(lanes)))
    draw.shuffle(order)
    other = tuple(tuple(lanes[a][b] for b in order) for a in order)
    devices = tuple(range(len(lanes)))
    assert rings(other, devices) == rings(lanes, devices)
    assert exchange_share(other, devices) == pytest.approx(exchange_share(lanes, devices))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((0, 1), 1),
        ((2, 3), 2),
        ((3, 4), 1),  # no lane: through a neighbour
        ((0, 1, 2, 3), 4),
        ((0, 2, 4, 6), 2),
        (tuple(range(8)), 6),
    ],
)
def test_eight_v100_are_a_cube_of_unlike_edges(devices: tuple[int, ...], expected: int) -> None:
    assert rings(V100, devices) == expected
    assert [sum(row) for row in V100] == [6] * 8


def test_an_all_to_all_is_bound_by_the_middle_of_the_cube() -> None:
    # 16 of 56 messages cross the six lanes between the halves, each way
    assert exchange_share(V100, tuple(range(8))) == pytest.approx(16 / 7 / 6)


def test_strided_groups_are_half_as_fast_as_neighbours() -> None:
    cluster, big = bundled_cluster("p3.16xlarge"), 10**9
    strided = MeshCost(cluster, Mesh.of(a=4, b=2)).sent_s("all_reduce", big, "a")
    beside = MeshCost(cluster, Mesh.of(a=2, b=4)).sent_s("all_reduce", big, "b")
    assert strided == pytest.approx(2 * beside, rel=1e-2)
    ring = MeshCost(cluster, Mesh.of(a=8)).sent_s("all_gather", big, "a")
    exchange = MeshCost(cluster, Mesh.of(a=8)).sent_s("all_to_all", big, "a")
    assert exchange == pytest.approx(ring * 16 / 7, rel=1e-2)


def test_lanes_come_back_from_json_and_are_cut_with_the_node() -> None:
    cluster = bundled_cluster("p3.16xlarge", num_devices=4)
    assert Cluster.from_json(cluster.to_json()) == cluster
    assert cluster.nodes[0].lanes == tuple(row[:4] for row in V100[:4])
    assert cluster.link_of((0, 3)).bytes_per_s == 2 * cluster.link_of((0, 1)).bytes_per_s
    with pytest.raises(ValueError, match="num_devices: expected 8 or fewer, got 16"):
        bundled_cluster("p3.16xlarge", num_devices=16)


@pytest.mark.parametrize("lanes", [((0, 1), (2, 0)), ((1,),), ((0, 1), (1, 0), (0, 0))])
def test_what_is_no_wiring_is_refused(lanes: Lanes) -> None:
    with pytest.raises(ValueError, match="lanes: expected 2 rows of 2 counts"):
        check_lanes(lanes, 2)
