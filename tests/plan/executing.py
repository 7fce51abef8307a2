"""A module's training steps under a plan on threads, and on one device without any."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blocks.pipeline import Schedule
from blocks.sharding import (
    Group,
    Mesh,
    OpGraph,
    Placement,
    Program,
    Strategy,
    count,
    cut_graph,
    lower,
    run_local,
    strategies,
)
from blocks.sharding.cross_mesh import Mode
from recipes.plan.execute import (
    AdamW,
    FxOperations,
    PlannedJob,
    PlannedModule,
    PlannedPipeline,
    StageProgram,
    on_threads,
    state_of,
)
from recipes.plan.execute.counted_group import counted
from recipes.plan.execute.flops import flop_counter
from recipes.plan.execute.memory_tracker import MemoryTracker
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.trace import TracedModule
from tests.plan.execute_cases import Case

Batch = Mapping[str, Tensor]
Steps = Sequence[Sequence[Batch]]
"""The microbatches of every step."""


class Run(NamedTuple):
    """What some steps of training leave: the loss of each, the gradients of the first, the state
    after the last."""

    losses: list[float]
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def random_strategies(
    graph: OpGraph, mesh: Mesh, seed: int, *, follow: float = 0.8
) -> list[Strategy]:
    """Any strategy for each node; those that cut something more often than not.

    Args:
        follow: the share of nodes that take a strategy which needs least resharding of its inputs.
    """
    draw = random.Random(seed)
    chosen: list[Strategy] = []
    lies: dict[int, tuple[Placement, ...]] = {}
    for node in graph.nodes:
        every = strategies(node.rule, mesh)
        options = every[1:] if len(every) > 1 and draw.random() < 0.7 else every
        if node.inputs and draw.random() < follow:
            fits = [
                sum(lies[v] == p for v, p in zip(node.inputs, s.inputs, strict=True))
                for s in options
            ]
            options = tuple(s for s, n in zip(options, fits, strict=True) if n == max(fits))
        chosen.append(draw.choice(options))
        lies.update(zip(node.outputs, chosen[-1].outputs, strict=True))
    return chosen


def random_program(traced: TracedModule, mesh: Mesh, seed: int, *, follow: float = 0.8) -> Program:
    """The program of random strategies."""
    chosen = random_strategies(traced.graph, mesh, seed, follow=follow)
    program = lower(traced.graph, chosen, mesh)
    program.check_invariants()
    return program


def train(module: PlannedModule, steps: Steps) -> Run:
    """One rank's account of some steps."""
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for microbatches in steps:
        scale, total = 1 / len(microbatches), 0.0
        for microbatch in microbatches:
            total += module.accumulate(microbatch, loss_scale=scale).item() * scale
        if not losses:
            gradients = module.gradients()
        losses.append(total)
        module.update()
        module.check_invariants()
    return Run(losses, gradients, module.state.whole())


def run_on_threads(
    traced: TracedModule, program: Program, state: Mapping[str, Tensor], steps: Steps
) -> list[Run]:
    """Every rank's account of the same steps."""

    def work(rank: int, groups: Mapping[str, Group]) -> Run:
        operations = FxOperations(traced.ops)
        adamw = AdamW(lr=0.1)
        return train(
            PlannedModule(program, operations, rank, groups, state, optimizer=adamw), steps
        )

    return run_local(program.mesh, work)


def assert_as_counted(case: Case, plans: Sequence[tuple[Mesh, int]]) -> None:
    """Random plans of a module, by mesh and seed: bytes sent exactly, work exactly, memory within
    5 % of what ``count`` says."""
    state, batch = case.state, case.batch(0)
    for mesh, seed in plans:
        program = random_program(case.traced, mesh, seed)

        def work(rank: int, groups: Mapping[str, Group], program: Program = program) -> tuple:
            counters, tracker = counted(groups), MemoryTracker()
            flops = flop_counter()
            with tracker:
                operations = FxOperations(case.traced.ops)
                module = PlannedModule(program, operations, rank, counters, state)
                tracker.restart_peak()
                for _ in range(2):
                    module.accumulate(batch)
                module.update()
            sent = {a: (dict(g.number), dict(g.bytes)) for a, g in counters.items()}
            with flops:  # takes operations apart, whose parts the tracker would see
                module.accumulate(batch)
            return sent, flops.get_total_flops(), tracker.peak

        for rank, (sent, flops, peak) in enumerate(run_local(program.mesh, work)):
            counts = count(program, rank)
            for axis, (numbers, num_bytes) in sent.items():
                expected: dict[str, tuple[int, int]] = {}
                for entry in counts.traffic:
                    if entry.axis == axis:
                        times = 1 if entry.phase == "update" else 2
                        number, total = expected.get(entry.collective, (0, 0))
                        number += times * entry.number
                        expected[entry.collective] = (number, total + times * entry.bytes)
                found = {kind: (number, num_bytes[kind]) for kind, number in numbers.items()}
                assert found == expected, f"seed {seed}, rank {rank}, axis {axis}"
            assert flops == counts.forward_flops + counts.backward_flops
            assert abs(counts.peak_bytes() - peak) <= 0.05 * peak, (seed, rank)


def run_alone(module: nn.Module, call: Callable[[nn.Module, Batch], Tensor], steps: Steps) -> Run:
    """The same steps of the module itself, by torch; the module is changed."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for microbatches in steps:
        optimizer.zero_grad()
        total = 0.0
        for microbatch in microbatches:
            loss = call(module, microbatch) / len(microbatches)
            loss.backward()
            total += loss.item()
        losses.append(total)
        if not gradients:
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None, name
                gradients[name] = parameter.grad.clone()
        optimizer.step()
    return Run(losses, gradients, {name: one.clone() for name, one in state_of(module).items()})


def assert_same_run(found: Run, expected: Run, *, tolerance: float, state: bool = True) -> None:
    """Losses and gradients to a relative tolerance, where a gradient that vanishes is measured by
    the largest one; parameters to a hundred times it.

    Args:
        state: whether to compare parameters: AdamW makes steps out of rounding errors where a
            gradient vanishes in float32.
    """
    for got, want in zip(found.losses, expected.losses, strict=True):
        assert abs(got - want) <= tolerance * abs(want), f"losses {found.losses}, {expected.losses}"
    assert set(found.gradients) == set(expected.gradients)
    largest = max(float(one.abs().max()) for one in expected.gradients.values())
    for name, want in expected.gradients.items():
        error = float((found.gradients[name] - want).abs().max())
        scale = max(float(want.abs().max()), 1e-2 * largest)  # of sums that vanish
        assert error <= tolerance * scale, f"gradient of {name}: {error / scale:.1e}"
    for name, got in found.state.items() if state else ():
        want = expected.state[name]
        error = float((got - want).abs().max())
        assert error <= 100 * tolerance * max(1.0, float(want.abs().max())), f"{name}: {error:.1e}"


def cut_evenly(graph: OpGraph, num_stages: int) -> list[int]:
    """A stage for every node: as many layers each; where there are too few of them as many runs
    of operations of one module."""
    layers = layers_of(graph)
    num_layers = max(layers) + 1
    if num_layers >= num_stages:
        return [layer * num_stages // num_layers for layer in layers]
    forward = [at for at, n in enumerate(graph.nodes) if n.role == "op" and n.phase == "forward"]
    run, module = [0] * len(graph.nodes), ""
    for before, at in zip([0, *forward], forward, strict=False):
        name = graph.nodes[at].module or module
        run[at] = run[before] + (name != module)
        module = name
    num_runs = run[forward[-1]] + 1
    return list(layers_of(graph, [number * num_stages // num_runs for number in run]))


def random_stages(
    traced: TracedModule, meshes: Sequence[Mesh], seed: int, *, follow: float = 0.8
) -> list[StageProgram]:
    """A pipeline of as many stages as there are meshes, each under random strategies."""
    found = []
    stage_of = cut_evenly(traced.graph, len(meshes))
    for at, cut in enumerate(cut_graph(traced.graph, stage_of)):
        chosen = random_strategies(cut.graph, meshes[at], seed + at, follow=follow)
        program = lower(cut.graph, chosen, meshes[at])
        program.check_invariants()
        found.append(StageProgram(cut, program))
    return found


def train_pipeline(pipeline: PlannedPipeline, steps: Steps) -> Run:
    """One device's account of some steps; losses where it has the last stage."""
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for at, microbatches in enumerate(steps):
        loss = pipeline.accumulate(microbatches)
        if loss is not None:
            losses.append(loss.item())
        if at == 0:
            gradients = pipeline.gradients()
        pipeline.update()
        pipeline.check_invariants()
    return Run(losses, gradients, pipeline.whole_state())


def pipeline_on_threads(
    traced: TracedModule,
    stages: Sequence[StageProgram],
    schedule: Schedule,
    state: Mapping[str, Tensor],
    steps: Steps,
    *,
    recompute: Sequence[int] = (),
    mode: Mode = "send_recv",
) -> Run:
    """All devices' accounts of the same steps in one; where two tell of the same they agree."""
    operations, adamw = FxOperations(traced.ops), AdamW(lr=0.1)
    job = PlannedJob(tuple(stages), schedule, operations, state, adamw, tuple(recompute), mode=mode)
    return joined(on_threads(job, lambda pipeline: train_pipeline(pipeline, steps)))


def joined(runs: Sequence[Run]) -> Run:
    """One account out of those of devices that hold different stages."""
    losses = next(run.losses for run in runs if run.losses)
    gradients: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for run in runs:
        assert run.losses in ([], losses)
        for found, known in ((run.gradients, gradients), (run.state, state)):
            for name, tensor in found.items():
                want = known.setdefault(name, tensor)
                torch.testing.assert_close(
                    tensor, want, msg=lambda text, name=name: f"{name}: {text}"
                )
    return Run(losses, gradients, state)
