"""A short trace stands for the whole model: the same layers, kinds and digest."""

from typing import Any

import torch
from torch import Tensor, nn

from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.short_trace import short_trace
from recipes.plan.model import call_of, layers_by_rows
from recipes.plan.trace import trace

NUM_BLOCKS = 9


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x).square().sum()


def deep(rows: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return Deep(), (torch.empty(rows, 3),), {}


def test_deep_models_are_traced_with_few_of_their_blocks():
    config = PlanConfig("tests.plan.test_short_trace:deep", batch_size=4)
    call = call_of(config, 4)
    graph, missing = short_trace(*call, optimizer="adamw")
    whole = LayerChain.of(trace(*call, whole=True).graph)
    assert missing == NUM_BLOCKS - 4
    assert len(graph.nodes) < sum(len(cut.graph.nodes) for cut in whole.layers) * 0.7
    found = layers_by_rows(config)(4)
    assert found.num_layers == whole.num_layers == NUM_BLOCKS + 2
    assert found.digest() == whole.digest()
    assert [found.kind(at) for at in range(11)] == [whole.kind(at) for at in range(11)]


def test_layers_that_alternate_are_all_there():
    config = PlanConfig("mlp:alpa", dtype="float32")
    whole = LayerChain.of(trace(*call_of(config, 4), whole=True).graph)
    assert layers_by_rows(config)(4).digest() == whole.digest()


def test_models_that_do_not_repeat_are_traced_whole():
    graph, missing = short_trace(*call_of(PlanConfig("dlrm:tiny"), 4), optimizer="adamw")
    assert missing == 0
    assert graph == trace(*call_of(PlanConfig("dlrm:tiny"), 4)).graph
