"""Clusters are data that come back from JSON; curves and fits say what was measured."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from blocks.sharding import Mesh
from blocks.sharding.cluster import (
    Cluster,
    CollectiveTable,
    Curve,
    Link,
    Node,
    SlowPair,
    Submesh,
    bundled_cluster,
    bundled_clusters,
    crossing_axes,
    fit_line,
    held_out_errors,
    logical_meshes,
    mesh_shapes,
    never_falling,
)

SOURCES = {"latency_s": "assumption", "bytes_per_s": "assumption", "node_bytes_per_s": "assumption"}
FAST, SLOW = Link("fast", 1e-6, 1e9, None, SOURCES), Link("slow", 1e-5, 1e8, 1e8, SOURCES)
POINTS = st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-7, 10.0)), min_size=1, max_size=9)


def mixed() -> Cluster:
    """Two A100 nodes and one of four V100, the first and the last far apart."""
    big, small = bundled_cluster("8xA100").kinds[0], bundled_cluster("p3.16xlarge").kinds[0]
    far = dataclasses.replace(SLOW, name="far", bytes_per_s=1e7)
    nodes = (Node(big.name, 8, "fast"),) * 2 + (Node(small.name, 4, "fast"),)
    links = (FAST, SLOW, far)
    return Cluster("mixed", (big, small), links, nodes, "slow", (SlowPair(0, 2, "far"),))


@pytest.mark.parametrize("name", bundled_clusters())
def test_bundled_clusters_come_back_from_json_with_a_source_for_each_number(
    name: str, tmp_path: Path
) -> None:
    cluster = bundled_cluster(name)
    assert Cluster.from_json(json.loads(json.dumps(cluster.to_json()))) == cluster
    cluster.save(str(tmp_path / "cluster.json"))
    again = Cluster.load(tmp_path / "cluster.json")
    assert again == cluster
    assert again.fingerprint() == cluster.fingerprint()
    words = ("data sheet", "assumption", "publication", "measured", "AWS", "adapters", "NVSwitch")
    for one in (*cluster.kinds, *cluster.links):
        assert all(any(word in text for word in words) for text in one.sources.values()), one.name


def test_fingerprints_tell_clusters_apart() -> None:
    clusters = [bundled_cluster(name) for name in bundled_clusters()]
    clusters += [mixed(), bundled_cluster("8xA100", num_nodes=2)]
    assert len({cluster.fingerprint() for cluster in clusters}) == len(clusters)


def test_devices_are_numbered_node_by_node() -> None:
    cluster = mixed()
    assert cluster.num_devices == 20
    assert [cluster.node_of(device) for device in (0, 7, 8, 15, 16, 19)] == [0, 0, 1, 1, 2, 2]
    assert cluster.devices_of(2) == range(16, 20)
    assert cluster.kind_of(15).name.startswith("A100")
    assert cluster.kind_of(16).name.startswith("V100")
    assert Cluster.from_json(cluster.to_json()) == cluster
    with pytest.raises(ValueError, match="device: expected below 20, got 20"):
        cluster.node_of(20)


def test_a_group_is_as_fast_as_the_slowest_link_between_its_nodes() -> None:
    cluster = mixed()
    assert cluster.link_of((0, 7)).name == "fast"
    assert cluster.link_of((7, 8)).name == "slow"
    assert cluster.link_of((8, 16)).name == "slow"
    assert cluster.link_of((0, 16)).name == "far"
    assert cluster.link_of((0, 8, 16)).name == "far"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": ()}, "nodes: expected at least one"),
        ({"nodes": (Node("T4", 1, "fast"),)}, "kind: expected one of"),
        ({"between": "wire"}, "link: expected one of"),
        ({"pairs": (SlowPair(2, 0, "far"),)}, "pair: expected two nodes of 3"),
        ({"links": (FAST, FAST)}, "links: expected different names"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mixed(), **change)


def test_numbers_without_a_source_are_refused() -> None:
    with pytest.raises(ValueError, match="sources of wire: expected a text for each of"):
        Link("wire", 1e-6, 1e9, None, {"latency_s": "assumption"})
    with pytest.raises(ValueError, match="sources of wire"):
        Link("wire", 1e-6, 1e9, None, {**SOURCES, "bytes_per_s": " "})


@pytest.mark.parametrize("damage", ["version", "kinds", "nodes"])
def test_damaged_files_are_refused(damage: str) -> None:
    data = mixed().to_json()
    data[damage] = 7
    with pytest.raises(ValueError, match="cluster"):
        Cluster.from_json(data)
    del data[damage]
    with pytest.raises(ValueError, match="cluster: expected the keys"):
        Cluster.from_json(data)


def test_a_file_that_is_no_json_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"cluster file .*x.json: expected JSON"):
        Cluster.load(tmp_path / "x.json")


@given(points=POINTS, size=st.integers(0, 2 * 10**9))
def test_curves_meet_their_points_and_lie_between_neighbours(
    points: list[tuple[int, float]], size: int
) -> None:
    at = tuple(sorted({x for x, _ in points}))
    seconds = tuple(y for _, y in points[: len(at)])
    curve = Curve(at, seconds)
    assert Curve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    for x, y in zip(at, seconds, strict=True):
        assert curve(x) == pytest.approx(y)
    left = max((i for i, x in enumerate(at) if x <= size), default=0)
    right = min(left + 1, len(at) - 1)
    if size <= at[-1]:
        low, high = sorted((seconds[left], seconds[right]))
        assert low * (1 - 1e-9) <= curve(size) <= high * (1 + 1e-9)
    else:
        assert curve(size) / size == pytest.approx(seconds[-1] / at[-1])


@given(st.floats(0, 1e-2), st.floats(1e3, 1e12))
def test_a_line_is_found_again(latency_s: float, bytes_per_s: float) -> None:
    sizes = tuple(4**power for power in range(4, 14))
    curve = Curve(sizes, tuple(latency_s + size / bytes_per_s for size in sizes))
    line = fit_line(curve)
    for size in (*sizes, 3 * 10**6):
        assert line(size) == pytest.approx(latency_s + size / bytes_per_s, rel=1e-4)
    assert max(held_out_errors(curve, fit_line)) < 1e-4
    assert max(held_out_errors(curve, lambda given: given)) < 1e-9  # straight lines stay straight


@given(points=POINTS)
def test_smoothed_curves_never_fall_and_leave_rising_ones_alone(
    points: list[tuple[int, float]],
) -> None:
    at = tuple(range(1, len(points) + 1))
    curve = Curve(at, tuple(seconds for _, seconds in points))
    smooth = never_falling(curve)
    for place, seconds in enumerate(smooth.seconds):
        assert seconds == min(curve.seconds[place:])
    assert never_falling(smooth) == smooth
    rising = Curve(at, tuple(sorted(curve.seconds)))
    assert never_falling(rising) == rising


def test_fits_have_no_negative_latency() -> None:
    assert fit_line(Curve((1, 2, 3), (1.0, 3.0, 5.0))).latency_s == 0.0
    assert fit_line(Curve((1, 2, 3), (5.0, 3.0, 2.0))).latency_s > 0  # faster with size


def test_the_nearest_number_of_ranks_stands_in() -> None:
    def table(num_ranks: int, seconds: float) -> CollectiveTable:
        return CollectiveTable("all_reduce", num_ranks, "elapsed", Curve((1,), (seconds,)))

    link = dataclasses.replace(FAST, tables=(table(2, 2.0), table(8, 8.0)))
    found = [link.seconds("all_reduce", 1, n) for n in (2, 3, 4, 5, 8, 64)]
    assert found == [2.0, 2.0, 8.0, 8.0, 8.0, 512.0 / 64]
    assert link.seconds("all_gather", 0, 8) == pytest.approx(3e-6)  # not measured: three hops
    assert Link.from_json(json.loads(json.dumps(link.to_json()))) == link


@given(num_devices=st.integers(1, 64))
def test_mesh_shapes_are_all_factorisations(num_devices: int) -> None:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    triples = [t for t in itertools.product(divisors, repeat=3) if math.prod(t) == num_devices]
    assert mesh_shapes(num_devices, 3) == tuple(sorted(triples, reverse=True))
    assert len(mesh_shapes(num_devices, 2)) == len(divisors)


def test_submeshes_are_rectangles_of_the_cluster() -> None:
    cluster = mixed()
    assert Submesh(1, 1, 4, 2).devices(cluster) == (12, 13)
    assert Submesh(1, 2, 2, 2).devices(cluster) == (10, 11, 18, 19)
    with pytest.raises(ValueError, match="devices on host 2: expected inside of 4"):
        Submesh(1, 2, 2, 3).devices(cluster)
    with pytest.raises(ValueError, match="hosts of the submesh"):
        Submesh(2, 2, 0, 1).devices(cluster)
    two = bundled_cluster("p3.16xlarge", num_nodes=2)
    assert Submesh.whole(two).devices(two) == tuple(range(16))
    crossing = {
        mesh.sizes: crossing_axes(two, mesh) for mesh in logical_meshes(two, Submesh.whole(two))
    }
    assert crossing == {
        (16, 1): ("data",),
        (8, 2): ("data",),
        (4, 4): ("data",),
        (2, 8): ("data",),
        (1, 16): ("tensor",),
    }
    inside = logical_meshes(two, Submesh(1, 1, 4, 4), ("a", "b"))
    assert inside[1] == Mesh(("a", "b"), (2, 2), (12, 13, 14, 15))
    assert not any(crossing_axes(two, mesh) for mesh in inside)


def test_clusters_are_resized_like_their_first_node() -> None:
    assert bundled_cluster("8xH200", num_nodes=64).num_devices == 512
    four = bundled_cluster("8xA100", num_devices=4)
    assert four.num_devices == 4
    assert four.kinds == bundled_cluster("8xA100").kinds
    two, eight = bundled_cluster("2xCPU"), bundled_cluster("2xCPU", num_devices=8)
    assert eight.kinds[0].memory_bytes == two.kinds[0].memory_bytes // 4  # one memory for all
    assert eight.nodes[0].cores == 2
    with pytest.raises(ValueError, match="num_nodes: expected 1"):
        dataclasses.replace(mixed(), nodes=mixed().nodes[:1], between="", pairs=()).resized(
            num_nodes=2
        )
    with pytest.raises(ValueError, match="cluster: expected one of"):
        bundled_cluster("8xB200")
