"""Alpa's formulas come out exactly; on clusters seconds follow from bytes, links and kinds."""

import dataclasses
import itertools
import math
import subprocess
import sys
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given

from blocks.sharding import (
    Factor,
    Mesh,
    OpRule,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    collective_bytes,
    plan_reshard,
)
from blocks.sharding.cluster import (
    Cluster,
    CollectiveTable,
    Curve,
    Node,
    bundled_cluster,
)
from blocks.sharding.cost import ALPA_TIES, AlphaBeta, CostModel, MeshCost, reshard_steps
from tests.sharding.test_cluster import FAST, mixed
from tests.sharding.test_spec import KINDS, MESHES, SPECS

PAIRS = [(source, target) for source in SPECS for target in SPECS if source.mesh == target.mesh]
COPIES = ("narrow", "mask")
MATMUL = OpRule(
    (Factor("row", 64), Factor("column", 64), Factor("sum", 64, "sum")),
    inputs=((0, 2), (2, 1)),
    outputs=((0, 1),),
    flops_per_point=2,
)


def cores(num_devices: int, num_cores: int, *tables: CollectiveTable) -> Cluster:
    kind = dataclasses.replace(bundled_cluster("8xA100").kinds[0], launch_s=0)
    link = dataclasses.replace(FAST, tables=tables)
    return Cluster("cores", (kind,), (link,), (Node(kind.name, num_devices, "fast", num_cores),))


@given(
    pair=st.sampled_from(PAIRS),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    itemsize=st.sampled_from([1, 2, 4, 8]),
)
def test_quick_steps_send_what_the_plan_declares(
    pair: tuple[ShardingSpec, ShardingSpec], shape: tuple[int, int], itemsize: int
) -> None:
    source, target = pair
    plan = plan_reshard(source, target)
    quick = reshard_steps(source.mesh, source.placements, target.placements)
    assert [(s.collective, s.axis) for s in quick] == [(s.collective, s.axis) for s in plan]
    for fast, step in zip(quick, plan, strict=True):
        assert fast.sent_bytes(shape, itemsize) == step.bytes(shape, itemsize)
        copied = 2 * math.prod(step.after.local_shape(shape, 0)) * itemsize
        assert fast.copied_bytes(shape, itemsize) == copied * (fast.collective in COPIES)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_formulas_of_alpa(n: int) -> None:
    alpha, beta, num_bytes = Fraction(1, 7), Fraction(3, 11), 4 * 9 * 64
    cost = AlphaBeta(Mesh.of(a=n), (alpha,), (beta,), ALPA_TIES)
    share, m = Fraction(n - 1, n), num_bytes
    assert cost.collective_s("all_gather", m, "a") == alpha + beta * share * m + Fraction("0.1")
    assert cost.collective_s("all_reduce", m, "a") == alpha + 2 * beta * share * m + Fraction(
        "0.01"
    )
    scattered = alpha + beta * share * m + Fraction("0.001")
    assert cost.collective_s("reduce_scatter", m, "a") == scattered
    half, fixed = Fraction(n, 2), dataclasses.replace(cost, all_to_all_penalty=Fraction(3, 2))
    for model, penalty in ((cost, half), (fixed, Fraction(3, 2))):
        expected = alpha + beta * share / n * m * penalty + Fraction("0.001")
        assert model.collective_s("all_to_all", m, "a") == expected
    assert cost.collective_s("narrow", m, "a") == cost.collective_s("mask", m, "a") == 0
    assert cost.compute_s(MATMUL, (64, 64, 64), m, "float32") == 0


def test_floats_give_the_formulas_of_alpa_in_floats() -> None:
    cost = AlphaBeta(Mesh.of(a=4, b=8), (1.0, 1.0), (1.0, 0.01), ALPA_TIES)
    expected = 1 + 2 * 0.01 * 7 / 8 * 4096 + 0.01
    assert cost.collective_s("all_reduce", 4096, "b") == pytest.approx(expected, rel=1e-15)


R, S0, S1 = Replicate(), Shard(0), Shard(1)


@pytest.mark.parametrize(
    ("source", "target", "collectives"),
    [  # Alpa's table 2, M bytes in all: (collective, divisor of M, axis)
        ((R, R), (S0, S1), []),
        ((S0, R), (R, R), [("all_gather", 1, "a")]),
        ((S0, S1), (S0, R), [("all_gather", 2, "b")]),
        ((S0, R), (S1, R), [("all_to_all", 1, "a")]),
        ((S0, R), (S0, S0), []),
        ((S0, S0), (S0, R), [("all_gather", 2, "b")]),
        ((S0, S0), (R, R), [("all_gather", 2, "b"), ("all_gather", 1, "a")]),
        ((Partial(), S0), (R, S0), [("all_reduce", 4, "a")]),
        ((Partial(), R), (S1, R), [("reduce_scatter", 1, "a")]),
    ],
)
def test_resharding_costs_of_alpa(source: tuple, target: tuple, collectives: list) -> None:
    mesh, shape = Mesh.of(a=2, b=4), (16, 16)
    cost = AlphaBeta(mesh, (1, 1), (Fraction(1), Fraction(1, 100)), ALPA_TIES)
    expected = sum(
        cost.collective_s(c, 16 * 16 * 4 // divisor, axis) for c, divisor, axis in collectives
    )
    assert cost.reshard_s(shape, 4, source, target) == expected


def test_every_model_answers_the_protocol() -> None:
    mesh = Mesh.of(a=2, b=4)
    models = [AlphaBeta(mesh, (0, 0), (1, 1)), MeshCost(bundled_cluster("8xA100"), mesh)]
    assert all(isinstance(model, CostModel) for model in models)


@given(pair=st.sampled_from(PAIRS), shape=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_resharding_is_the_sum_of_its_steps(
    pair: tuple[ShardingSpec, ShardingSpec], shape: tuple[int, int]
) -> None:
    source, target = pair
    cost = MeshCost(bundled_cluster("8xH100"), source.mesh)
    steps = plan_reshard(source, target)
    expected = sum(cost.sent_s(s.collective, s.bytes(shape, 4), s.axis) for s in steps)
    for step in steps:
        if step.collective in COPIES:
            expected += cost.work_s(0, 8 * math.prod(step.after.local_shape(shape, 0)), "float32")
    found = cost.reshard_s(shape, 4, source.placements, target.placements)
    assert found == pytest.approx(expected, rel=1e-12)
    assert (found == 0) == (source == target)


@pytest.mark.parametrize("mesh", MESHES)
def test_collectives_agree_with_the_bytes_declared(mesh: Mesh) -> None:
    cost = MeshCost(bundled_cluster("8xH100"), mesh)
    for axis, size in zip(mesh.axes, mesh.sizes, strict=True):
        for name in ("all_reduce", "all_gather", "reduce_scatter"):
            sent = collective_bytes(name, 36, 4, size)
            assert cost.collective_s(name, 36 * 4, axis) == cost.sent_s(name, sent, axis)
        sent = collective_bytes("all_to_all", 36 // size, 4, size)
        assert cost.collective_s("all_to_all", 36 * 4, axis) == cost.sent_s(
            "all_to_all", sent, axis
        )


def test_groups_that_share_a_wire_wait_for_one_another() -> None:
    cluster = bundled_cluster("p3.16xlarge", num_nodes=2)
    wire, nvlink = cluster.link(cluster.between), cluster.link("NVLink 2")
    big = 10**9

    def seconds(collective, axis: str, **sizes: int) -> float:
        return MeshCost(cluster, Mesh.of(**sizes)).sent_s(collective, big, axis)

    alone = big / wire.bytes_per_s
    one_lane = 6 * big / nvlink.bytes_per_s  # the first two devices have one lane of six
    assert seconds("all_reduce", "a", a=2) == pytest.approx(one_lane, rel=1e-2)
    one_ring = seconds("all_reduce", "a", a=16)
    eight_rings = seconds("all_reduce", "a", a=2, b=8)
    assert one_ring == pytest.approx(alone, rel=1e-2)
    assert eight_rings == pytest.approx(8 * alone, rel=1e-2)
    assert seconds("all_reduce", "b", a=2, b=8) == pytest.approx(big / nvlink.bytes_per_s, rel=1e-2)
    # eight ranks a node send to eight others elsewhere: 8 * 8 / 15 of what each sends
    assert seconds("all_to_all", "a", a=16) == pytest.approx(alone * 64 / 15, rel=1e-2)
    dgx = bundled_cluster("8xA100", num_nodes=2)
    rail = MeshCost(dgx, Mesh.of(a=2, b=8)).sent_s("all_reduce", big, "a")
    assert rail == pytest.approx(big / dgx.link(dgx.between).bytes_per_s, rel=1e-2)


def test_a_ring_is_no_faster_than_the_link_inside_of_its_nodes() -> None:
    cluster = dataclasses.replace(
        mixed(), links=tuple(dataclasses.replace(l, node_bytes_per_s=None) for l in mixed().links)
    )
    slow_inside = dataclasses.replace(FAST, bytes_per_s=1e5)
    cluster = dataclasses.replace(cluster, links=(slow_inside, *cluster.links[1:]))
    found = MeshCost(cluster, Mesh.of(a=16)).sent_s("all_gather", 10**9, "a")
    assert found == pytest.approx(1e9 / 1e5, rel=1e-3)


def test_the_slowest_kind_holds_up_the_others() -> None:
    cluster = mixed()
    fast, slow = cluster.kinds
    both = MeshCost(cluster, Mesh(("a",), (2,), (15, 16)))
    sizes = (4096, 4096, 4096)
    assert both.compute_s(MATMUL, sizes, 0, "float16") == slow.op_s(2 * 4096**3, 0, "float16")
    alone = MeshCost(cluster, Mesh(("a",), (2,), (14, 15)))
    assert alone.compute_s(MATMUL, sizes, 0, "float16") == fast.op_s(2 * 4096**3, 0, "float16")
    assert both.memory_bytes == slow.memory_bytes
    with pytest.raises(ValueError, match=r"dtype: expected one of .*'bfloat16'"):
        both.compute_s(MATMUL, sizes, 0, "bfloat16")
    assert both.compute_s(MATMUL, (0, 1, 1), 0, "int64") == slow.launch_s


@pytest.mark.parametrize("name", ["8xA100", "8xH100", "8xH200"])
def test_operations_take_the_longer_of_arithmetic_and_memory(name: str) -> None:
    cost = MeshCost(bundled_cluster(name), Mesh.of(a=8))
    kind = cost.cluster.kinds[0]
    flops_s = 2 * 64**3 / (kind.peak_flops["bfloat16"] * 0.7)
    assert cost.compute_s(MATMUL, (64, 64, 64), 0, "bfloat16") == flops_s + 7e-6
    assert cost.compute_s(MATMUL, (1, 1, 1), 10**9, "bfloat16") == kind.memory_s(10**9) + 7e-6


@given(num_ranks=st.integers(1, 8), num_cores=st.integers(1, 8))
def test_ranks_take_turns_on_cores(num_ranks: int, num_cores: int) -> None:
    cluster, mesh = cores(8, num_cores), Mesh.of(a=num_ranks)
    one = cluster.kinds[0].op_s(10**9, 0, "float32")
    elapsed = MeshCost(cluster, mesh).work_s(10**9, 0, "float32")
    assert elapsed == pytest.approx(one * max(1, num_ranks / num_cores))
    assert MeshCost(cluster, mesh, "cpu").work_s(10**9, 0, "float32") == pytest.approx(
        num_ranks * one
    )
    crowded = MeshCost(cluster, mesh, busy=8).work_s(10**9, 0, "float32")
    assert crowded == pytest.approx(one * max(1, 8 / num_cores))


def test_collectives_on_shared_cores() -> None:
    curve = Curve((1000, 2000), (1.0, 2.0))
    tables = [CollectiveTable("all_reduce", 2, clock, curve) for clock in ("elapsed", "cpu")]
    cluster = cores(4, 2, *tables)
    alone = MeshCost(cluster, Mesh.of(a=2))
    assert alone.sent_s("all_reduce", 1500, "a") == 1.5
    two_groups = MeshCost(cluster, Mesh.of(a=2, b=2))
    assert two_groups.sent_s("all_reduce", 1500, "a") == 3.0  # four ranks on two cores
    assert dataclasses.replace(alone, clock="cpu").sent_s("all_reduce", 1500, "a") == 3.0
    assert dataclasses.replace(two_groups, clock="cpu").sent_s("all_reduce", 1500, "b") == 6.0
    eight = MeshCost(
        cores(8, 2, *tables), Mesh.of(a=8)
    )  # by the table of two, which had a core each
    assert eight.sent_s("all_reduce", 1500, "a") == 6.0
    with pytest.raises(ValueError, match="cpu seconds of all_gather"):
        MeshCost(cluster, Mesh.of(a=2), "cpu").sent_s("all_gather", 1, "a")


def test_what_cannot_be_costed_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks of the mesh: expected devices below 8"):
        MeshCost(bundled_cluster("8xA100"), Mesh.of(a=16))
    with pytest.raises(ValueError, match="clock: expected elapsed"):
        MeshCost(bundled_cluster("8xA100"), Mesh.of(a=8), "cpu")
    with pytest.raises(ValueError, match="axis: expected one of"):
        MeshCost(bundled_cluster("8xA100"), Mesh.of(a=8)).collective_s("all_reduce", 1, "b")
    with pytest.raises(ValueError, match="sharded dim: expected below 2"):
        MeshCost(bundled_cluster("8xA100"), Mesh.of(a=8)).reshard_s(
            (4, 4), 2, (Shard(5),), (Replicate(),)
        )


MISSPELT = {
    "kind": "reduce_rule((2, 3), [1], kind='avg')",
    "clock": "MeshCost(cluster, mesh, 'cpi')",
    "collective": "MeshCost(cluster, mesh).collective_s('shuffle', 8, 'a')",
    "mode": "plan_cross_mesh((4,), spec, spec, mode='tea')",
    "balance": "plan_cross_mesh((4,), spec, spec, balance='tea')",
}


def test_misspelt_choices_are_refused_where_annotations_are_not_executed() -> None:
    code = (
        "from blocks.sharding import *\n"
        "from blocks.sharding.rules import reduce_rule\n"
        "mesh, cluster = Mesh.of(a=8), bundled_cluster('8xA100')\n"
        "spec = ShardingSpec.replicated(mesh)\n"
        f"for name, call in {MISSPELT!r}.items():\n"
        "    try: eval(call)\n"
        "    except ValueError as error: print(str(error).startswith(name + ': expected one of'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * len(MISSPELT), done.stdout + done.stderr


def test_more_bytes_and_slower_links_cost_more() -> None:
    cluster = bundled_cluster("8xA100", num_nodes=4)
    for sizes in ((4, 8), (32, 1)):
        cost = MeshCost(cluster, Mesh(("a", "b"), sizes))
        for source, target in itertools.permutations(itertools.product(KINDS, repeat=2), 2):
            small, large = (cost.reshard_s((n, n), 2, source, target) for n in (64, 4096))
            assert small <= large
