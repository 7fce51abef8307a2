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
    PlannedPipeline,
    in_process_group,
    job_of,
    on_forks,
    on_threads,
    state_of,
)
from recipes.plan.model import call_of, torch_dtype
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.this_machine import check_here
from recipes.plan.trace import TracedModule, trace
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
        compare: do the same on one device too, and say how far the losses are apart.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a model without weights or numbers of its own, or other than the plan's; more
            devices than there are processes, or than this machine has room for.
    """
    check_count("num_steps", num_steps)
    _check_devices(plan, how)
    config = PlanConfig.from_json(plan.settings)
    rows = config.rows(plan.num_microbatches)
    torch.manual_seed(seed)
    module, args, kwargs = call_of(config, rows, seed=seed)
    module = module if isinstance(module, nn.Module) else module()
    wide = torch_dtype("gradient_dtype", config.gradient_dtype)
    traced = trace(module, args, kwargs, optimizer=config.optimizer, gradient_dtype=wide)
    optimizer = _optimizer(config)
    job = job_of(plan, traced, state_of(module), optimizer=optimizer, seed=seed)
    steps = [
        [_inputs(config, traced, rows, seed + step * plan.num_microbatches + at) for at in
         range(plan.num_microbatches)]
        for step in range(num_steps)
    ]  # fmt: skip
    losses = _run(job, steps, how)
    if losses is None:
        return []  # a rank without the loss
    for step, loss in enumerate(losses):
        say(f"step {step}  loss {loss:.6f}")
    if compare:
        if any(word in node.op for node in traced.graph.nodes for word in RANDOM):
            say("dropout and other random operations draw other numbers on one device")
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
    check(bool(world), "how", "torchrun around it", "none", "torchrun --nproc-per-node N -m ...")
    expected = f"{plan.num_devices} or more, the plan's devices"
    check(world >= plan.num_devices, "processes", expected, world)


def _run(job: PlannedJob, steps: Steps, how: How) -> list[float] | None:
    def work(pipeline: PlannedPipeline, mesh: Any = None) -> list[float] | None:
        losses = [pipeline.step(microbatches) for microbatches in steps]
        return None if losses[0] is None else [float(loss) for loss in losses if loss is not None]

    if how == "torchrun":
        dist.init_process_group("gloo")
        try:
            return in_process_group(job, work)
        finally:
            dist.destroy_process_group()
    if how == "forks":
        found = on_forks(job, work)
    else:
        found = on_threads(job, work)
    return next(losses for losses in found if losses is not None)


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
