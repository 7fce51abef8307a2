"""A tensor comes to any other mesh whole, over no more bytes than declared."""

import itertools
import json
import math
import threading
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from blocks.sharding import (
    Mesh,
    MeshCost,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    bundled_cluster,
    plan_reshard,
    run_local,
)
from blocks.sharding.cross_mesh import (
    CrossMeshPlan,
    DistributedWire,
    LocalWires,
    Transfer,
    check_holds,
    cross_mesh_s,
    execute_cross_mesh,
    plan_cross_mesh,
)
from blocks.sharding.cross_mesh.box import is_zero, num_elements
from blocks.sharding.reference import gather, shard
from tests.forked import run_forked
from tests.sharding.test_cluster import mixed

SIZES = ((1,), (2,), (3,), (4,), (8,), (2, 2), (2, 3), (4, 2), (1, 3), (2, 2, 2))
KINDS = (Replicate(), Shard(0), Shard(1), Partial())
MODES = ("send_recv", "all_gather", "broadcast")
BALANCES = ("first", "size", "order")
SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9))


def specs(first: int) -> st.SearchStrategy[ShardingSpec]:
    """Specs on meshes whose ranks start at ``first``."""
    meshes = [
        Mesh(tuple("abc"[: len(sizes)]), sizes, tuple(range(first, first + math.prod(sizes))))
        for sizes in SIZES
    ]
    every = [
        ShardingSpec(mesh, kinds)
        for mesh in meshes
        for kinds in itertools.product(KINDS, repeat=len(mesh.axes))
    ]
    return st.sampled_from(every)


PLANS = {
    "shape": SHAPES,
    "source": specs(0),
    "target": st.one_of(specs(100), specs(0), specs(2)),  # apart, alike, overlapping
    "mode": st.sampled_from(MODES),
    "balance": st.sampled_from(BALANCES),
}


def part_of(whole: np.ndarray, spec: ShardingSpec, rank: int) -> np.ndarray:
    part = whole[tuple(slice(*run) for run in spec.runs(whole.shape, rank))]
    return np.zeros_like(part) if is_zero(spec, rank) else part


def carry_out(plan: CrossMeshPlan, whole: np.ndarray) -> tuple[dict[int, np.ndarray], dict]:
    """Parts under the target, NaN where nothing came, and the elements every rank sent."""

    def cells(runs, outer):
        return tuple(
            slice(run.start - out.start, run.stop - out.start)
            for run, out in zip(runs, outer, strict=True)
        )

    source, target, shape = plan.reduced, plan.target, plan.shape
    held = {rank: part_of(whole, source, rank) for rank in source.mesh.ranks}
    found = {rank: np.full(target.local_shape(shape, rank), np.nan) for rank in target.mesh.ranks}
    sent: dict[int, int] = {}
    for box, a, b, relayed in plan.transfers:
        parts, spec = (found, target) if relayed else (held, source)
        piece = parts[a][cells(box, spec.runs(shape, a))]
        place = found[b][cells(box, target.runs(shape, b))]
        assert piece.shape == place.shape
        assert not np.isnan(piece).any(), "sent before it came"
        assert np.isnan(place).all(), "came twice"
        place[...] = piece
        if a != b:
            sent[a] = sent.get(a, 0) + piece.size
    return found, sent


@given(**PLANS)
@settings(max_examples=200)
def test_every_rank_gets_its_part_and_bytes_are_as_declared(
    shape: tuple[int, int], source: ShardingSpec, target: ShardingSpec, mode, balance
) -> None:
    plan = plan_cross_mesh(shape, source, target, mode=mode, balance=balance, rounds=2)
    whole = np.arange(math.prod(shape), dtype=float).reshape(shape) + 1
    found, sent = carry_out(plan, whole)
    for rank, part in found.items():
        expected = part_of(whole, target, rank)
        assert np.array_equal(np.nan_to_num(part), expected)  # zeros need no message
        assert is_zero(target, rank) or not np.isnan(part).any()
    assert plan.bytes_sent(4) == {rank: 4 * count for rank, count in sent.items()}
    assert plan.cross_bytes(4) + plan.relayed_bytes(4) == 4 * sum(sent.values())
    assert not plan.reduced.has_partial
    assert plan.reduction == plan_reshard(source, plan.reduced)
    check_holds(plan)
    assert CrossMeshPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(shape=SHAPES, source=specs(0), target=st.one_of(specs(100), specs(0), specs(2)))
@settings(max_examples=150)
def test_a_local_all_gather_moves_each_element_across_once(
    shape: tuple[int, int], source: ShardingSpec, target: ShardingSpec
) -> None:
    by_mode = {mode: plan_cross_mesh(shape, source, target, mode=mode) for mode in MODES}
    cross = {mode: plan.cross_bytes(1) for mode, plan in by_mode.items()}
    assert cross["all_gather"] <= cross["send_recv"]
    assert cross["broadcast"] <= cross["send_recv"]
    if not set(source.mesh.ranks) & set(target.mesh.ranks):
        assert cross["all_gather"] == cross["broadcast"] == math.prod(shape)
        wanted = sum(
            math.prod(target.local_shape(shape, rank))
            for rank in target.mesh.ranks
            if not is_zero(target, rank)
        )
        assert cross["send_recv"] == wanted
        assert by_mode["all_gather"].relayed_bytes(1) == wanted - math.prod(shape)


@given(**{name: PLANS[name] for name in ("shape", "source", "target")}, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_senders_share_the_load(
    shape: tuple[int, int], source: ShardingSpec, target: ShardingSpec, seed: int
) -> None:
    def most(balance) -> int:
        plan = plan_cross_mesh(shape, source, target, mode="send_recv", balance=balance, seed=seed)
        assert plan == plan_cross_mesh(
            shape, source, target, mode="send_recv", balance=balance, seed=seed
        )
        return max(plan.bytes_sent(1).values(), default=0)

    assert most("size") <= most("first")


def test_replicas_send_in_turn() -> None:
    source = ShardingSpec.replicated(Mesh.of(a=4))
    target = ShardingSpec(Mesh(("a",), (4,), (4, 5, 6, 7)), (Shard(0),))
    first = plan_cross_mesh((8,), source, target, balance="first")
    assert first.bytes_sent(4) == {0: 32}
    for balance in ("size", "order"):
        plan = plan_cross_mesh((8,), source, target, balance=balance)
        assert plan.bytes_sent(4) == {0: 8, 1: 8, 2: 8, 3: 8}


def test_sums_are_taken_first_and_where_a_dim_can_be_cut_each_rank_keeps_a_run() -> None:
    mesh, far = Mesh.of(a=2, b=2), Mesh(("x",), (1,), (9,))
    plan = plan_cross_mesh(
        (4, 3), ShardingSpec(mesh, (Partial(), Shard(0))), ShardingSpec.replicated(far)
    )
    assert plan.reduced == ShardingSpec(mesh, (Shard(1), Shard(0)))  # b cuts dim 0 inside of a
    assert [step.collective for step in plan.reduction] == ["reduce_scatter"]
    scalar = plan_cross_mesh((), ShardingSpec.of(mesh, a=Partial()), ShardingSpec.replicated(far))
    assert [step.collective for step in scalar.reduction] == ["all_reduce"]
    assert scalar.cross_bytes(4) == 4


@given(**PLANS)
@settings(max_examples=25)
def test_threads_carry_a_plan_out(
    shape: tuple[int, int], source: ShardingSpec, target: ShardingSpec, mode, balance
) -> None:
    plan = plan_cross_mesh(shape, source, target, mode=mode, balance=balance, rounds=2)
    whole = torch.arange(math.prod(shape)).view(shape) + 1.0
    wires, places = LocalWires(), {rank: at for at, rank in enumerate(source.mesh.ranks)}
    parts, found = shard(whole, source), {}

    def work(rank, groups):
        part = parts[places[rank]] if rank in places else None
        wire = wires.of(rank)
        made = execute_cross_mesh(part, plan, rank, wire, dtype=whole.dtype, groups=groups)
        assert (made is not None) == (rank in target.mesh.ranks)
        found[rank] = made

    others = [rank for rank in target.mesh.ranks if rank not in places]
    threads = [threading.Thread(target=work, args=(rank, None)) for rank in others]
    for thread in threads:
        thread.start()
    run_local(source.mesh, work)
    for thread in threads:
        thread.join(30)
    made = [found[rank] for rank in target.mesh.ranks]
    assert torch.equal(gather(made, target), whole)
    for rank, part in zip(target.mesh.ranks, made, strict=True):
        assert tuple(part.shape) == target.local_shape(shape, rank)
        assert not is_zero(target, rank) or not part.any()
    moved = {rank: count for rank, count in wires.num_bytes_sent.items() if count}
    assert moved == plan.bytes_sent(4)


def test_processes_carry_plans_out() -> None:
    two, rest = Mesh.of(a=2), Mesh(("a", "b"), (1, 3), (1, 2, 3))
    pairs = [(Shard(0), (Replicate(), Replicate())), (Replicate(), (Replicate(), Shard(1)))]
    whole = torch.arange(35.0).view(7, 5)

    def work(rank: int) -> list:
        second: Any = torch.distributed.new_group()
        wires = [DistributedWire(), DistributedWire(downward=second)]
        found: list = []
        for (placement, placements), mode in itertools.product(pairs, MODES):
            source, target = ShardingSpec(two, (placement,)), ShardingSpec(rest, placements)
            plan = plan_cross_mesh((7, 5), source, target, mode=mode)
            part = shard(whole, source)[rank] if rank in two.ranks else None
            wire = wires[len(found) % 2]
            made = execute_cross_mesh(part, plan, rank, wire, dtype=torch.float32)
            wanted = shard(whole, target)[rest.ranks.index(rank)] if rank in rest.ranks else None
            if made is None or wanted is None:
                found.append(made is wanted)
            else:
                found.append(torch.equal(made, wanted))
        return found

    assert run_forked(4, work) == [[True] * 6] * 4


def test_plans_that_do_not_hold_are_refused() -> None:
    source, target = (
        ShardingSpec(Mesh.of(a=2), (Shard(0),)),
        ShardingSpec(Mesh(("a",), (2,), (2, 3)), (Replicate(),)),
    )
    plan = plan_cross_mesh((4,), source, target)
    first, *others = plan.transfers

    def broken(*transfers: Transfer) -> CrossMeshPlan:
        return CrossMeshPlan((4,), source, target, source, "all_gather", transfers)

    check_holds(broken(*plan.transfers))
    for transfers in (others, [first, *plan.transfers], [first._replace(source=1), *others]):
        with pytest.raises(ValueError, match=r"transfer: expected|part of rank"):
            check_holds(broken(*transfers))


def test_parts_that_do_not_fit_are_refused() -> None:
    source = ShardingSpec(Mesh.of(a=2), (Partial(),))
    plan = plan_cross_mesh((4,), source, ShardingSpec(Mesh(("a",), (1,), (2,)), (Replicate(),)))
    wire, part = LocalWires().of(0), torch.zeros(4)
    calls = [
        ("part: expected a tensor", (None, plan, 0, wire), torch.float32),
        ("part: expected None", (part, plan, 2, wire), torch.float32),
        ("shape of rank 0's part", (part[:2], plan, 0, wire), torch.float32),
        ("dtype of rank 0's part", (part, plan, 0, wire), torch.float64),
        ("groups: expected one for each axis", (part, plan, 0, wire), torch.float32),
    ]
    for message, arguments, dtype in calls:
        with pytest.raises(ValueError, match=message):
            execute_cross_mesh(*arguments, dtype=dtype)
    with pytest.raises(ValueError, match="sharded dim"):
        plan_cross_mesh((4,), source, ShardingSpec(Mesh.of(a=2), (Shard(1),)))


def between(n: int, source, target, shape, mode, cluster="p3.16xlarge") -> float:
    """Seconds from one node of n devices to another."""
    here, there = Mesh.of(a=n), Mesh(("a",), (n,), tuple(range(8, 8 + n)))
    plan = plan_cross_mesh(
        shape, ShardingSpec(here, (source,)), ShardingSpec(there, (target,)), mode=mode
    )
    return cross_mesh_s(plan, 4, bundled_cluster(cluster, num_nodes=2))


def test_seconds_between_nodes_are_those_of_the_wire_they_share() -> None:
    wire = bundled_cluster("p3.16xlarge").link("25 Gb/s Ethernet")
    shape, num_bytes = (1 << 24,), 4 << 24
    once = num_bytes / wire.bytes_per_s
    assert between(8, Shard(0), Shard(0), shape, "send_recv") == pytest.approx(once, rel=0.01)
    assert between(8, Shard(0), Replicate(), shape, "send_recv") == pytest.approx(
        8 * once, rel=0.01
    )
    for mode in ("all_gather", "broadcast"):
        slow = between(8, Shard(0), Replicate(), shape, mode)
        assert once < slow < 1.2 * once
    # a wire for each device: eight at a time
    rails = bundled_cluster("8xA100")
    alone = num_bytes / 8 / rails.link(rails.between).bytes_per_s
    found = between(8, Shard(0), Shard(0), shape, "send_recv", "8xA100")
    assert found == pytest.approx(alone, rel=0.05)


def test_a_chain_in_chunks_is_faster_than_one_after_another() -> None:
    source = ShardingSpec.replicated(Mesh.of(a=1))
    target = ShardingSpec.replicated(Mesh(("a",), (4,), (1, 2, 3, 4)))
    cluster = bundled_cluster("8xA100")
    seconds = {}
    for chunks in (1, 2, 4, 16):
        plan = plan_cross_mesh((1 << 24,), source, target, mode="broadcast", num_chunks=chunks)
        seconds[chunks] = cross_mesh_s(plan, 4, cluster)
    link = cluster.link("NVLink 3")
    for chunks, found in seconds.items():  # four hops
        hop = (4 << 24) / chunks / link.bytes_per_s + link.latency_s
        assert found == pytest.approx(hop * (chunks + 3))


def test_sums_and_slow_links_are_in_the_seconds() -> None:
    cluster = mixed()
    far = ShardingSpec.replicated(Mesh(("a",), (1,), (16,)))
    near = ShardingSpec.replicated(Mesh(("a",), (1,), (8,)))
    source = ShardingSpec.replicated(Mesh.of(a=2))
    to_far, to_near = (
        cross_mesh_s(plan_cross_mesh((1 << 20,), source, t), 4, cluster) for t in (far, near)
    )
    assert to_far > 5 * to_near
    summed = ShardingSpec(Mesh.of(a=2), (Partial(),))
    plan = plan_cross_mesh((1 << 20,), summed, near)
    assert cross_mesh_s(plan, 4, cluster) > to_near
    with pytest.raises(ValueError, match="device: expected below 20"):
        cross_mesh_s(
            plan_cross_mesh((4,), source, ShardingSpec.replicated(Mesh(("a",), (1,), (20,)))),
            4,
            cluster,
        )


@given(
    shape=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    source=specs(0),
    target=specs(8),
    mode=st.sampled_from(MODES),
    cluster=st.sampled_from(["p3.16xlarge", "8xA100"]),
)
@settings(max_examples=30)
def test_seconds_lie_between_what_each_wire_needs_and_one_message_at_a_time(
    shape: tuple[int, int], source: ShardingSpec, target: ShardingSpec, mode, cluster: str
) -> None:
    plan = plan_cross_mesh(shape, source, target, mode=mode)
    nodes = bundled_cluster(cluster, num_nodes=2)
    found = cross_mesh_s(plan, 4, nodes)
    began = MeshCost(nodes, source.mesh).reshard_s(
        shape, 4, source.placements, plan.reduced.placements
    )
    wire, inside = nodes.link(nodes.between), nodes.link_of((8, 9))
    assert wire.node_bytes_per_s is not None
    sent = plan.bytes_sent(4)
    least = [plan.cross_bytes(4) / wire.node_bytes_per_s]
    least += [sent.get(rank, 0) / wire.bytes_per_s for rank in source.mesh.ranks]
    least += [sent.get(rank, 0) / inside.bytes_per_s for rank in target.mesh.ranks]
    links = [nodes.link_of((t.source, t.target)) for t in plan.transfers]
    one_at_a_time = sum(
        link.seconds("send", 4 * num_elements(t.box), 2)
        for link, t in zip(links, plan.transfers, strict=True)
    )
    assert began + max(least) * (1 - 1e-9) <= found <= began + one_at_a_time * (1 + 1e-9)
