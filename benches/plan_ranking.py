"""Do plans predicted to take less time take less time? On this machine, many plans a model.

python -m benches.plan_ranking                      # four models, forty plans each, minutes
python -m benches.plan_ranking --models 1 --plans 8 # a look

Plans are the solver's own, the solver's around choices made by chance, and choices by chance alone,
on 1, 2 and 4 ranks. Predicted and measured is processor time summed over the ranks of a step, which
other work on the machine leaves alone; ranks are forked and speak over gloo.

Reference: Spearman, "The proof and measurement of association between two things", 1904.
"""

import argparse
import dataclasses
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.sharding import (
    Cluster,
    Mesh,
    MeshCost,
    OpGraph,
    Program,
    Strategy,
    axis_groups,
    bundled_cluster,
    lower,
    make_device_mesh,
    strategies,
)
from blocks.sharding.intra_op import price, solve
from recipes.plan.calibrate import calibrate
from recipes.plan.execute import FxOperations, PlannedModule
from recipes.plan.families.hugging_face import model as hugging_face
from recipes.plan.families.mlp import MLP, MLPConfig
from recipes.plan.ranks import run_ranks
from recipes.plan.trace import TracedModule, trace

MESHES = (Mesh.of(a=1), Mesh.of(a=2), Mesh.of(a=4), Mesh.of(a=2, b=2))
NUM_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to plan.

    make: the module. inputs: what it is called with.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Plans of a model.

    predicted_s, measured_s: processor seconds of a step, plan by plan.
    """

    name: str
    predicted_s: tuple[float, ...]
    measured_s: tuple[float, ...]

    @property
    def spearman(self) -> float:
        return spearman(self.predicted_s, self.measured_s)

    @property
    def regret(self) -> float:
        """What the plan predicted to be fastest takes over what the fastest takes."""
        best = min(range(len(self.predicted_s)), key=self.predicted_s.__getitem__)
        return self.measured_s[best] / min(self.measured_s)

    @property
    def pairs_right(self) -> float:
        """Of the pairs that differ by more than 1.3x, the share in the right order."""
        right = total = 0
        for i, a in enumerate(self.measured_s):
            for j, b in enumerate(self.measured_s[:i]):
                if max(a, b) > 1.3 * min(a, b):
                    total += 1
                    right += (a < b) == (self.predicted_s[i] < self.predicted_s[j])
        return right / total if total else 1.0


def subjects() -> tuple[Subject, ...]:
    """Two networks of linear layers and two transformers, the second of each larger."""

    def mlp(hidden: int, layers: int, rows: int) -> Subject:
        draw = torch.Generator().manual_seed(0)
        x, target = (torch.randn(rows, hidden, generator=draw) for _ in range(2))
        config = MLPConfig(hidden, layers)
        return Subject(
            f"MLP {layers} x {hidden}, {rows} rows",
            lambda: MLP(config),
            {"x": x, "target": target},
        )

    def llama(hidden: int, layers: int, rows: int, length: int) -> Subject:
        make = hugging_face(
            "LlamaForCausalLM",
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=1024,
        )
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, 1024, (rows, length), generator=draw)
        name = f"Llama {layers} x {hidden}, {rows} x {length} tokens"
        return Subject(name, make, {"input_ids": tokens, "labels": tokens})

    return (
        mlp(256, 8, 512),
        mlp(768, 6, 256),
        llama(128, 2, 8, 64),
        llama(256, 3, 4, 128),
    )


def plans(
    traced: TracedModule, cluster: Cluster, count: int, seed: int = 0
) -> list[tuple[Mesh, Sequence[Strategy], float]]:
    """Meshes, strategies and predicted processor seconds, cheap and dear ones."""
    graph, draw = traced.graph, random.Random(seed)
    found: list[tuple[Mesh, Sequence[Strategy], float]] = []
    costs = [MeshCost(cluster, mesh, clock="cpu") for mesh in MESHES]

    def add(cost: MeshCost, chosen: Sequence[Strategy]) -> None:
        priced = price(graph, chosen, cost.mesh, cost)
        seconds = priced.forward_s + priced.backward_s + priced.step_s
        found.append((cost.mesh, chosen, seconds))

    for cost in costs:
        add(cost, solve(graph, cost.mesh, cost).strategies)
    products = [node for node in graph.nodes if node.rule.flops_per_point]
    while len(found) < count:
        cost = costs[1:][len(found) % 3]
        if len(found) % 4 == 3:  # by chance alone, readers mostly following what lies there
            add(cost, by_chance(graph, cost.mesh, draw))
            continue
        names = draw.sample(products, min(len(products), draw.randint(1, 6)))
        pins = {node.name: draw.choice(strategies(node.rule, cost.mesh)) for node in names}
        add(cost, solve(graph, cost.mesh, cost, pins=pins).strategies)
    return found


def by_chance(graph: OpGraph, mesh: Mesh, draw: random.Random) -> list[Strategy]:
    """For every node one of the strategies that need least resharding of its inputs."""
    chosen: list[Strategy] = []
    lies: dict[int, Any] = {}
    for node in graph.nodes:
        every = strategies(node.rule, mesh)
        fits = [
            sum(lies[v] == p for v, p in zip(node.inputs, s.inputs, strict=True)) for s in every
        ]
        chosen.append(draw.choice([s for s, n in zip(every, fits, strict=True) if n == max(fits)]))
        lies.update(zip(node.outputs, chosen[-1].outputs, strict=True))
    return chosen


def measure(
    traced: TracedModule,
    program: Program,
    state: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> float:
    """Processor seconds of a step, summed over ranks: the least of a few."""
    arguments = (traced, program, state, inputs)
    each = run_ranks(program.mesh.num_ranks, _rank, arguments, "cpu")
    return min(map(sum, zip(*each, strict=True)))


def _rank(
    device: torch.device,
    traced: TracedModule,
    program: Program,
    state: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> list[float]:
    gc.disable()
    rank = torch.distributed.get_rank()
    groups = axis_groups(make_device_mesh(program.mesh))
    module = PlannedModule(program, FxOperations(traced.ops), rank, groups, state)
    module.step([inputs])
    took = []
    for _ in range(NUM_STEPS):
        torch.distributed.barrier()
        before = time.process_time()
        module.step([inputs])
        took.append(time.process_time() - before)
    return took


def rank_plans(subject: Subject, cluster: Cluster, count: int, seed: int = 0) -> Ranked:
    """Predict and measure plans of a model."""
    torch.manual_seed(0)
    module = subject.make()
    traced = trace(module, (), subject.inputs, whole=True)
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    state = {name: one.detach().clone() for name, one in held.items()}
    names = list(traced.inputs)
    inputs = {name: subject.inputs[name.rpartition(".")[2]] for name in names}
    predicted, measured = [], []
    for mesh, chosen, seconds in plans(traced, cluster, count, seed):
        predicted.append(seconds)
        measured.append(measure(traced, lower(traced.graph, chosen, mesh), state, inputs))
    return Ranked(subject.name, tuple(predicted), tuple(measured))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation.

    >>> spearman([1, 2, 3, 4], [1, 2, 4, 3])
    0.8
    """
    return round(statistics.correlation(_ranks(a), _ranks(b)), 9)


def _ranks(numbers: Sequence[float]) -> list[float]:
    """The place of each number in order, the middle one of equal numbers."""
    order = sorted(numbers)
    return [order.index(x) + (order.count(x) - 1) / 2 for x in numbers]


def machine_cluster(note: Callable[[str], None] = lambda text: None) -> Cluster:
    """This machine with four ranks, measured now."""
    return calibrate([2, 4], device_type="cpu", num_devices=4, dtypes=["float32"], budget_s=0.1,
                     on_progress=note)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.plan_ranking", description=__doc__)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--bundled", action="store_true", help="costs of the bundled cluster file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cluster = bundled_cluster("2xCPU", num_devices=4) if options.bundled else machine_cluster(print)
    for subject in subjects()[: options.models]:
        found = rank_plans(subject, cluster, options.plans)
        print(
            f"{found.name}: Spearman {found.spearman:.3f}, regret {found.regret:.3f}, "
            f"{found.pairs_right:.1%} of pairs over 1.3x in order; measured "
            f"{min(found.measured_s) * 1e3:.1f} to {max(found.measured_s) * 1e3:.1f} ms",
            flush=True,
        )
        for p, m in sorted(zip(found.predicted_s, found.measured_s, strict=True)):
            print(f"   {p * 1e3:8.2f} ms predicted {m * 1e3:8.2f} ms measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
