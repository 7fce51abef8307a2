"""Memory that operations share, and memory they must have of their own, as predicted."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from blocks.sharding import Group, Mesh, count, lower, run_local
from recipes.plan.execute import FxOperations, PlannedModule, state_of
from recipes.plan.execute.memory_tracker import MemoryTracker
from recipes.plan.trace import trace
from tests.plan.executing import random_strategies


class SharedHeads(nn.Module):
    """Two heads that four others each read, as in grouped attention."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(16, 16, bias=False)
        self.query = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.key(x).view(*x.shape[:2], 2, 1, 8)
        every = heads.expand(-1, -1, -1, 4, -1).reshape(*x.shape[:2], 8, 8)
        return (every * self.query).square().sum()


def test_heads_that_are_shared_have_memory_of_their_own_once_they_are_one_dim() -> None:
    module, mesh, x = SharedHeads(), Mesh.of(a=1), torch.ones(4, 32, 16)
    traced = trace(module, (x,), {})
    program = lower(traced.graph, random_strategies(traced.graph, mesh, 0), mesh)
    counts = count(program, 0)
    every = 4 * 32 * 8 * 8 * 4
    assert counts.saved_bytes >= 2 * every  # the heads, and their product with the query

    def work(rank: int, groups: Mapping[str, Group]) -> int:
        tracker = MemoryTracker()
        with tracker:
            operations = FxOperations(traced.ops)
            planned = PlannedModule(program, operations, rank, groups, state_of(module))
            tracker.restart_peak()
            planned.accumulate({traced.inputs[0]: x})
        return tracker.peak

    (peak,) = run_local(mesh, work)
    predicted = counts.fixed_bytes + max(counts.forward_bytes, counts.backward_bytes)
    assert abs(predicted - peak) <= every / 64, (predicted, peak)
