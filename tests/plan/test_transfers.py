"""What crosses between layers, and plans of models in which values skip layers."""

import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.pipeline.inter_op import SubmeshShape
from blocks.sharding import bundled_cluster
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.search import search
from recipes.plan.search.boundaries import arrivals
from recipes.plan.search.transfers import boundary_bytes, has_skips, transfer_of
from recipes.plan.trace import trace
from recipes.plan.view.explain import explain
from tests.plan.graphs import mlp

WIDE, NARROW = 2048, 16
HALF, NODE, NODES = SubmeshShape(1, 4), SubmeshShape(1, 8), SubmeshShape(2, 8)


class Across(nn.Module):
    """Narrow blocks, and beside them something wide from the first layer to the last ones; one
    matrix is used at both ends."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.first, self.wide = nn.Linear(NARROW, NARROW), nn.Linear(NARROW, WIDE)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(NARROW, NARROW), nn.ReLU()) for _ in range(num_blocks)
        )
        self.last = nn.ModuleList(nn.Linear(WIDE, NARROW) for _ in range(2))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        across, x = F.gelu(self.wide(x)), self.first(x)
        for block in self.blocks:
            x = block(x)
        for layer in self.last:
            x = x + layer(across)
        return F.cross_entropy(x @ self.first.weight, label)


@functools.cache
def across(num_blocks: int, num_layers: int | None = None, rows: int = 4) -> LayerChain:
    inputs = torch.rand(rows, NARROW), torch.zeros(rows, dtype=torch.int64)
    return LayerChain.of(trace(Across(num_blocks), inputs).graph, num_layers=num_layers)


CHAINS: dict[str, Callable[[], LayerChain]] = {
    "skips": lambda: across(5),
    "short": lambda: across(5, num_layers=across(5).num_layers + 2),
    "neighbours": lambda: LayerChain.of(mlp(5)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_crosses_a_bound_is_what_a_stage_behind_it_receives(name: str) -> None:
    chain = CHAINS[name]()
    found = boundary_bytes(chain)

    def received(first: int, stop: int) -> int:
        total = 0
        for one in arrivals(chain, first, stop):
            graph = chain.layers[chain.sequence[one.layer]].graph
            size = graph.values[graph.nodes[one.node].outputs[0]].num_bytes
            total += 0 if one.once else size
        return total

    for bound in range(1, chain.num_layers):
        assert found[bound] == (received(bound, chain.num_layers), received(0, bound)), bound
    assert found[0] == found[-1] == (0, 0)


def test_what_neighbours_send_is_part_of_it() -> None:
    chain = across(5)
    assert has_skips(chain)
    assert not has_skips(LayerChain.of(mlp(5)))
    every, near = boundary_bytes(chain), boundary_bytes(chain, skips=False)
    assert all(a >= b for pair in zip(every, near, strict=True) for a, b in zip(*pair, strict=True))
    wide, narrow = 4 * WIDE * 4, 4 * NARROW * 4
    assert near[3] == (narrow, narrow)
    assert every[3] == (wide + narrow, wide + narrow)


def test_no_plan_with_skips_is_below_its_bound() -> None:
    """Stages of slow nodes; what is wide goes past those in the middle."""
    config = PlanConfig(
        "across", "p3.16xlarge", batch_size=512, num_microbatches=4, max_stage_devices=1, workers=1
    )
    cluster = bundled_cluster("p3.16xlarge", num_nodes=4, num_devices=1)
    found = search(lambda rows: across(4, rows=rows), cluster, config).plan
    assert any(abs(one.source - one.target) > 1 for one in found.boundaries if not one.once)
    assert found.predicted.gap >= 0
    assert not any("stages solved alone take" in note for note in found.notes)
    lines = explain(found, across(4, rows=512 // 4), cluster)
    told = [line for line in lines if re.match(r"stage \d+ to \d+, ", line)]
    once = [line.endswith(" a step") for line in told]
    slowest = sorted(found.boundaries, key=lambda one: -one.seconds)
    assert once == [one.once for one in slowest[: len(told)]]
    assert any(once)
    assert not all(once)


@pytest.mark.parametrize(("name", "ports"), [("p3.16xlarge", 1), ("8xH100", 8)])
def test_messages_share_what_joins_their_nodes(name: str, ports: int):
    cluster, chain = bundled_cluster(name, num_nodes=4), CHAINS["neighbours"]()
    there, back = boundary_bytes(chain)[2]
    between, send = cluster.link(cluster.between), transfer_of(cluster, chain)

    def took(lanes: int) -> tuple[float, float]:
        sizes = there / lanes, back / lanes
        return between.seconds("send", sizes[0], 2), between.seconds("send", sizes[1], 2)

    assert send(2, NODE, NODE) == took(ports)
    assert send(2, NODES, NODES) == took(2 * ports)
    assert send(2, NODES, NODE) == send(2, NODE, NODES) == took(ports)
    assert send(2, HALF, NODE) == took(min(4, ports))


def test_stages_that_have_room_on_a_node_are_near_unless_told_apart():
    cluster, chain = bundled_cluster("p3.16xlarge", num_nodes=2), CHAINS["neighbours"]()
    near, apart = transfer_of(cluster, chain), transfer_of(cluster, chain, apart=True)
    assert max(near(2, HALF, HALF)) < min(apart(2, HALF, HALF))
    assert near(2, HALF, NODE) == apart(2, HALF, NODE)
    alone = bundled_cluster("p3.16xlarge")
    assert transfer_of(alone, chain, apart=True)(2, HALF, HALF) == near(2, HALF, HALF)
