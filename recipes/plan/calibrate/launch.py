"""The least time of an operation: by itself, and in a planned step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.sharding import Group, Mesh, lower, run_local, strategies
from blocks.sharding.program import Compute
from recipes.plan.calibrate.timing import Sample, repeat
from recipes.plan.execute import FxOperations, PlannedModule
from recipes.plan.trace import trace

INNER = 20
"""Operations that are timed together, so that the clock's own time does not count."""


class _Tiny(nn.Module):
    """Layers of a few elements: next to no work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x)) + x
        return F.cross_entropy(x, labels)


def measure_bare(device: torch.device, budget_s: float) -> Sample:
    """Seconds of an addition of one element, which the other probes are freed of."""
    x = torch.ones(1, device=device)

    def call() -> None:
        for _ in range(INNER):
            torch.add(x, x, out=x)

    found = repeat(call, device, budget_s)
    return Sample(found.seconds / INNER, found.spread)


def measure_launch(budget_s: float) -> Sample:
    """Seconds of an operation in a planned step that has next to nothing to compute, on a CPU."""
    module, mesh = _Tiny(), Mesh.of(only=1)
    batch = {"args.0": torch.ones(2, 4), "labels": torch.zeros(2, dtype=torch.long)}
    traced = trace(module, (batch["args.0"],), {"labels": batch["labels"]})
    chosen = [strategies(node.rule, mesh)[0] for node in traced.graph.nodes]
    program = lower(traced.graph, chosen, mesh)
    phases = (program.forward, program.backward, program.update)
    count = sum(isinstance(instruction, Compute) for phase in phases for instruction in phase)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}

    def work(rank: int, groups: Mapping[str, Group]) -> Sample:
        torch.set_num_threads(1)
        planned = PlannedModule(program, FxOperations(traced.ops), rank, groups, state)
        return repeat(lambda: planned.step([batch]), torch.device("cpu"), budget_s)

    found = run_local(mesh, work)[0]
    return Sample(found.seconds / count, found.spread)
