"""Training under a plan against training on one device, gradient for gradient, and on from another
plan's checkpoint."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from blocks.pipeline.schedules import gpipe, one_f_one_b, zb_h1
from blocks.sharding import Mesh
from recipes.plan.execute import (
    AdamW,
    FxOperations,
    PlannedJob,
    PlannedPipeline,
    checkpoint,
    on_threads,
)
from tests.plan.execute_cases import Case
from tests.plan.executing import Batch, random_stages

SHAPES = (
    ({"a": 2},),
    ({"a": 3},),
    ({"a": 2, "b": 2},),
    ({"a": 4},),
    ({"a": 1}, {"a": 2}),
    ({"a": 2}, {"a": 2, "b": 2}),
    ({"a": 2}, {"a": 1}, {"a": 3}),
)
"""Meshes of the stages, which plans go through in turn."""

NUM_STEPS = 3
"""Of the optimizer, before a checkpoint; one more after it."""

VANISHING = 1e-2
"""Gradients smaller than this share of the largest one are measured by that share."""


class Precision(NamedTuple):
    """What runs are computed in, the error they may have, and the optimizer they use."""

    dtype: torch.dtype
    tolerance: float
    optimizer: AdamW


PRECISIONS = {
    "float64": Precision(torch.float64, 1e-9, AdamW(lr=1e-2)),
    # AdamW steps by the sign of a gradient, also of one that is rounding alone, unless ``eps`` is
    # above that.
    "float32": Precision(torch.float32, 1e-5, AdamW(lr=1e-3, eps=1e-4)),
}


class Step(NamedTuple):
    """The loss of a step, and the gradients by parameter."""

    loss: float
    gradients: dict[str, Tensor]


def batches(case: Case) -> list[list[Batch]]:
    """Two microbatches for every step."""
    return [[case.batch(2 * at), case.batch(2 * at + 1)] for at in range(NUM_STEPS + 1)]


def meshes_of(shape: Sequence[Mapping[str, int]]) -> list[Mesh]:
    """Meshes of devices counted from 0, stage after stage."""
    found: list[Mesh] = []
    for sizes in shape:
        mesh = Mesh.of(**sizes)
        first = sum(before.num_ranks for before in found)
        ranks = tuple(first + rank for rank in mesh.ranks)
        found.append(Mesh(mesh.axes, mesh.sizes, ranks))
    return found


def random_job(case: Case, seed: int, state: Mapping[str, Tensor], adamw: AdamW) -> PlannedJob:
    """Random strategies on the meshes, the schedule and the recomputation of a seed."""
    meshes = meshes_of(SHAPES[seed % len(SHAPES)])
    stages = random_stages(case.traced, meshes, seed, follow=(0.95, 0.8, 0.5)[seed % 3])
    schedule = random.Random(seed).choice([gpipe, one_f_one_b, zb_h1])
    recompute = [at for at in range(len(meshes)) if random.Random(f"{seed}/{at}").random() < 0.3]
    made = schedule(len(meshes), (1,) * 2)
    operations = FxOperations(case.traced.ops)
    return PlannedJob(tuple(stages), made, operations, state, adamw, tuple(recompute))


def alone(case: Case, adamw: AdamW) -> list[Step]:
    """The steps of the module itself, by torch; the module is changed."""
    optimizer = torch.optim.AdamW(case.module.parameters(), lr=adamw.lr, eps=adamw.eps)
    found = []
    for microbatches in batches(case):
        optimizer.zero_grad()
        total = 0.0
        for microbatch in microbatches:
            loss = case.call(case.module, microbatch) / len(microbatches)
            loss.backward()
            total += loss.item()
        named = dict(case.module.named_parameters())
        found.append(Step(total, {n: p.grad.clone() for n, p in named.items()}))  # pyright: ignore
        optimizer.step()
    return found


def _train(pipeline: PlannedPipeline, steps: Sequence[Sequence[Batch]]) -> list[Step]:
    """One device's account; losses where it has the last stage, else not a number."""
    found = []
    for microbatches in steps:
        loss = pipeline.accumulate(microbatches)
        gradients = {name: one.clone() for name, one in pipeline.gradients().items()}
        found.append(Step(float("nan") if loss is None else loss.item(), gradients))
        pipeline.update()
        pipeline.check_invariants()
    return found


def first_steps(job: PlannedJob, case: Case, folder: Path) -> list[list[Step]]:
    """The devices' accounts of all steps but the last; a checkpoint is left in ``folder``."""

    def work(pipeline: PlannedPipeline) -> tuple[list[Step], dict[str, Tensor]]:
        return _train(pipeline, batches(case)[:-1]), checkpoint.whole_state(pipeline)

    found = on_threads(job, work)
    whole = {name: one for _, state in found for name, one in state.items()}
    checkpoint.save_whole(whole, folder)
    return [steps for steps, _ in found]


def last_step(job: PlannedJob, case: Case, folder: Path) -> list[list[Step]]:
    """The devices' accounts of the last step, from the checkpoint in ``folder``."""

    def work(pipeline: PlannedPipeline) -> list[Step]:
        checkpoint.load_whole(pipeline, folder)
        return _train(pipeline, batches(case)[-1:])

    return on_threads(job, work)


def blank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Nothing of it: what is not read from a checkpoint shows."""
    return {
        name: torch.full_like(one, float("nan")) if one.is_floating_point() else one * 0
        for name, one in state.items()
    }


def worst_error(devices: Sequence[Sequence[Step]], expected: Sequence[Step]) -> float:
    """The largest relative error of losses, and of gradients by their largest element."""
    worst = 0.0
    for at, want in enumerate(expected):
        steps = [device[at] for device in devices]
        losses = [step.loss for step in steps if step.loss == step.loss]
        assert losses, "nobody has the loss"
        worst = max(worst, *(abs(loss - want.loss) / abs(want.loss) for loss in losses))
        largest = max(float(one.abs().max()) for one in want.gradients.values())
        missing = set(want.gradients) - {name for step in steps for name in step.gradients}
        assert not missing, f"no gradient of {sorted(missing)[:3]}"
        for step in steps:
            for name, got in step.gradients.items():
                gradient = want.gradients[name]
                scale = max(float(gradient.abs().max()), VANISHING * largest)
                error = float((got - gradient).abs().max()) / scale
                worst = max(worst, error if error == error else float("inf"))
    return worst


def in_double(case: Case, double: Case) -> Case:
    """``double`` with the weights and batches of ``case``: one device in float32 is itself off."""

    def wide(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}

    double.module.load_state_dict(wide(case.module.state_dict()))
    return double._replace(batch=lambda seed: wide(case.batch(seed)))


def trials(
    case: Case, seeds: Sequence[int], adamw: AdamW, folder: Path, *, double: Case | None = None
) -> list[float]:
    """For every seed the worst error of its plan: three steps from the beginning, and one from the
    checkpoint that the plan before it left.

    Args:
        double: the same family in float64, to be what plans in float32 are compared with.
    """
    state = case.state
    expected = alone(case if double is None else in_double(case, double), adamw)
    found: list[float] = []
    first_steps(random_job(case, seeds[-1], state, adamw), case, folder / "0")
    for number, seed in enumerate(seeds):
        job = random_job(case, seed, state, adamw)
        error = worst_error(first_steps(job, case, folder / str(number + 1)), expected[:-1])
        resumed = dataclasses.replace(job, state=blank(state))
        again = last_step(resumed, case, folder / str(number))
        found.append(max(error, worst_error(again, expected[-1:])))
    return found
