"""``run_plan``: training steps as a plan has them: threads, forked processes or torchrun."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from blocks._checks import check, check_count
from recipes.plan.config import PlanConfig
from recipes.plan.execute import (
    SGD,
    AdamW,
    PlannedJob,
    in_process_group,
    job_of,
    on_forks,
    on_threads,
    state_of,
)
from recipes.plan.execute.told_steps import StepDone, told_steps
from recipes.plan.model import Call, call_of, torch_dtype, traced_step
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.this_machine import check_here
from recipes.plan.trace import TracedModule
from recipes.plan.trace.loss_module import loss_of

How = Literal["threads", "forks", "torchrun"]
Batch = Mapping[str, Tensor]
Steps = Sequence[Sequence[Batch]]
"""The microbatches of every step, by names of inputs."""

RANDOM = ("dropout", "bernoulli", "aten.rand")


def run_plan(
    plan: ParallelPlan,
    *,
    num_steps: int = 3,
    seed: int = 0,
    how: How = "threads",
    say: Callable[[str], None] = print,
    compare: bool = False,
) -> list[float]:
    """Steps of the plan's model on drawn inputs, weights drawn from a seed.

    Args:
        how: every device a thread here, a process forked from here, or a rank of torchrun's.
        say: told how far it is, and the loss of every step as soon as it is done; by rank 0 and by
            one rank that has the loss where torchrun started them.
        compare: do the same on one device too, and say how far the losses are apart.

    Returns:
        The loss of every step; empty on a rank without it.

    Raises:
        ValueError: a model without weights or numbers of its own, or other than the plan's; more
            devices than there are processes, or than this machine has room for.
    """
    check_count("num_steps", num_steps)
    _check_devices(plan, how)
    config = PlanConfig.from_json(plan.settings)
    rows = config.rows(plan.num_microbatches)
    torch.manual_seed(seed)
    begun = say if how != "torchrun" or os.environ.get("RANK", "0") == "0" else _nothing
    begun(f"tracing {config.model} with {rows} rows")
    module, args, kwargs = call_of(config, rows, seed=seed)
    module = module if isinstance(module, nn.Module) else module()
    wide = torch_dtype("gradient_dtype", config.gradient_dtype)

    def call(some: int) -> Call:
        return (module, args, kwargs) if some == rows else call_of(config, some)

    traced = traced_step(call, rows, optimizer=config.optimizer, gradient_dtype=wide)
    optimizer = _optimizer(config)
    job = job_of(plan, traced, state_of(module), optimizer=optimizer, seed=seed)
    steps = [
        [_inputs(config, traced, rows, seed + step * plan.num_microbatches + at) for at in
         range(plan.num_microbatches)]
        for step in range(num_steps)
    ]  # fmt: skip
    begun(_what(plan, rows, num_steps, how))
    losses, speaks = _run(job, steps, how, lambda done: say(done.line()))
    if not speaks:
        return losses
    if compare:
        if any(word in node.op for node in traced.graph.nodes for word in RANDOM):
            say("dropout and other random operations draw other numbers on one device")
        say("the same on one device")
        alone = _alone(config, module, args, kwargs, steps)
        apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, alone, strict=True))
        say(f"one device: {', '.join(f'{loss:.6f}' for loss in alone)}; apart by {apart:.1e}")
    return losses


def _check_devices(plan: ParallelPlan, how: How) -> None:
    """Before anything is traced or started."""
    if how != "torchrun":
        check_here(plan)
        return
    world = int(os.environ.get("WORLD_SIZE", 0))
    start = f"torchrun --nproc-per-node {plan.num_devices} -m recipes.plan run PLAN --how torchrun"
    check(bool(world), "how", "torchrun around it", "none", start)
    expected = f"{plan.num_devices} or more, the plan's devices"
    check(world >= plan.num_devices, "processes", expected, world)


def _nothing(text: str) -> None:
    """What other ranks say too."""


def _what(plan: ParallelPlan, rows: int, num_steps: int, how: How) -> str:
    stages, parts = len(plan.stages), plan.num_microbatches
    words = {"threads": "threads", "forks": "forked processes", "torchrun": "ranks of torchrun"}
    return (
        f"{num_steps} step{'s'[: num_steps > 1]} of {parts} microbatch{'es' if parts > 1 else ''} "
        f"of {rows} rows, {stages} stage{'s'[: stages > 1]}, {plan.num_devices} devices as "
        f"{words[how]}"
    )


def _run(
    job: PlannedJob, steps: Steps, how: How, tell: Callable[[StepDone], None]
) -> tuple[list[float], bool]:
    """Losses, and whether this process is the one to speak of them."""
    if how == "torchrun":
        spoke = False

        def heard(done: StepDone) -> None:
            nonlocal spoke
            spoke = True
            tell(done)

        dist.init_process_group("gloo")
        try:
            losses = in_process_group(job, lambda pipeline, _: told_steps(pipeline, steps, heard))
            return losses or [], spoke
        finally:
            dist.destroy_process_group()
    if how == "forks":
        found = on_forks(
            job, lambda pipeline, _, tell: told_steps(pipeline, steps, tell), hear=tell
        )
    else:
        found = on_threads(job, lambda pipeline: told_steps(pipeline, steps, tell))
    return next(losses for losses in found if losses is not None), True


def _inputs(config: PlanConfig, traced: TracedModule, rows: int, seed: int) -> dict[str, Tensor]:
    """A microbatch by the names of the traced inputs."""
    _, args, kwargs = call_of(config, rows, seed=seed)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    hint = "the factory's inputs need numbers to be run"
    check(not any(t.is_meta for t in tensors), "inputs", "tensors with numbers", "meta", hint)
    return dict(zip(traced.inputs, tensors, strict=True))


def _optimizer(config: PlanConfig) -> SGD | AdamW:
    """What a plan was asked for."""
    if config.optimizer == "adamw":
        return AdamW()
    hint = "python -m recipes.train --plan runs it"
    check(config.optimizer != "muon", "optimizer", "adamw, sgd or momentum", "muon", hint)
    return SGD(momentum=0.9 if config.optimizer == "momentum" else 0.0)


def _alone(
    config: PlanConfig,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    steps: Steps,
) -> list[float]:
    """The same steps of the module itself; it is changed."""
    planned = _optimizer(config)
    if isinstance(planned, SGD):
        optimizer = torch.optim.SGD(module.parameters(), planned.lr, planned.momentum)
    else:
        optimizer = torch.optim.AdamW(module.parameters(), planned.lr)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    losses = []
    for microbatches in steps:
        optimizer.zero_grad()
        total = 0.0
        for microbatch in microbatches:
            drawn = iter(microbatch.values())
            given = [next(drawn) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            again, named = pytree.tree_unflatten(given, spec)
            loss = loss_of(module(*again, **named)) / len(microbatches)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses
