"""Runs of the tiny decoder with and without a parallel plan, and what is told of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.sharding import Mesh
from recipes.plan.config import PlanConfig
from recipes.plan.execute import PlannedJob
from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.trace import TracedModule, trace
from recipes.train.config import TrainConfig
from recipes.train.layout import layout_of
from recipes.train.model import model_config
from recipes.train.place import Place
from recipes.train.planned import parallel_plan
from recipes.train.planned_job import job_for
from recipes.train.planned_trainer import PlannedTrainer
from recipes.train.prepare import Prepared, prepare
from recipes.train.presets import tiny
from recipes.train.run import _settle
from recipes.train.trainer import Trainer
from tests.forked import run_forked
from tests.train.made_plans import (
    Wanted,
    anything,
    both,
    data_parallel,
    made_plan,
    tensor_parallel,
)

NUM_STEPS, CHANGED = 20, 12
ROWS, TOKENS = 2, 16
PLAIN = dataclasses.replace(
    tiny(),
    max_corpus_bytes=60_000,
    context_len=TOKENS,
    num_heads=4,
    num_kv_heads=2,
    optimizer="adamw",
    num_steps=NUM_STEPS,
    clip_norm=1.2,  # some steps are clipped, others are not
)
ASKED = PlanConfig(
    "decoder:tiny,num_heads=4,num_kv_heads=2",
    batch_size=4,
    num_microbatches=2,
    seq_len=TOKENS,
    dtype="float32",
    gradient_dtype="float32",
)
ONE, OTHER = Mesh(("x",), (1,), (0,)), Mesh(("x",), (1,), (1,))
PLANS: dict[str, tuple[tuple[Mesh, ...], Wanted]] = {
    "one": ((ONE,), anything(3)),
    "data": ((Mesh.of(x=2),), data_parallel(0)),
    "tensor": ((Mesh.of(x=2),), tensor_parallel(0)),
    "stages": ((ONE, OTHER), data_parallel(0)),
    "both": ((Mesh.of(x=2, y=2),), both(data_parallel(0), tensor_parallel(1))),
    "staged": ((Mesh.of(x=2), Mesh(("x",), (2,), (2, 3))), tensor_parallel(0)),
    "anything": ((Mesh.of(x=2),), anything(1)),
    "uneven": ((ONE, Mesh(("x",), (3,), (1, 2, 3))), anything(2)),
}


@functools.cache
def text() -> Prepared:
    return prepare(PLAIN)


@functools.cache
def traced_in(dtype: str) -> TracedModule:
    """A step of the model; gradients are summed in float32."""
    model = model_config(PLAIN, text().tokenizer)
    tokens = torch.empty(ROWS, TOKENS, dtype=torch.int64, device="meta")
    return trace(
        lambda: TrainedDecoder(model).to(getattr(torch, dtype)),
        (),
        {"inputs": tokens, "labels": tokens},
        gradient_dtype=torch.float32,
    )


def report(trainer: Trainer, num_steps: int) -> dict[str, Any]:
    norms, trainer.losses = [], []
    for _ in range(num_steps):
        trainer.train_step()
        norms.append(trainer.grad_norm)
    return {"losses": trainer.losses, "norms": norms, "held_out": trainer.evaluate(256).loss}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = {name: first[name] + second[name] for name in ("losses", "norms")}
    return both | {"held_out": second["held_out"], "before": first["held_out"]}


@functools.cache
def plan_of(name: str, asked: PlanConfig = ASKED) -> ParallelPlan:
    return made_plan(traced_in(asked.dtype).graph, *PLANS[name], asked)


def planned(name: str, folder: Path, asked: PlanConfig = ASKED, **changes: Any) -> TrainConfig:
    """A run that follows a plan, as it is settled."""
    path = plan_of(name, asked).write(folder / f"{name}.json")
    return _settle(dataclasses.replace(PLAIN, plan=str(path), **changes), None, None)


def known_trace(call: Any, rows: int, **_: Any) -> TracedModule:
    """In the place of ``traced_step``: every run's model is one that is traced already."""
    with torch.device("meta"):
        dtype = call(rows)[0]().embed.weight.dtype
    return traced_in(str(dtype).removeprefix("torch."))


def job_of(config: TrainConfig) -> PlannedJob:
    plan = parallel_plan(config)
    assert plan is not None
    return job_for(config, model_config(config, text().tokenizer), plan)


def in_processes(config: TrainConfig, work: Any) -> list[Any]:
    """What ``work(trainer, place)`` returns on every device of a plan."""
    job = job_of(config)

    def on_rank(rank: int) -> Any:
        with Place.join(layout_of(config)) as place:
            return work(PlannedTrainer(config, text(), place=place, job=job), place)

    return run_forked(layout_of(config).num_ranks, on_rank, timeout_s=150)


def assert_same(
    found: dict[str, Any], alone: dict[str, Any], rel: float = 1e-5, norms: float = 1e-4
) -> None:
    assert found["losses"] == pytest.approx(alone["losses"], rel=rel)
    assert found["norms"] == pytest.approx(alone["norms"], rel=norms)
    assert found["held_out"] == pytest.approx(alone["held_out"], rel=rel)
