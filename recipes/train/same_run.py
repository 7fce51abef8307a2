"""Which settings a resumed run may change, and what it takes over of the run before."""

import dataclasses
from typing import Any

from blocks._checks import fail
from recipes.train.config import TrainConfig
from recipes.train.planned import parallel_plan

# Settings that may change between the parts of one run without changing its numbers.
_FREE = {
    *("dp", "pp", "fsdp", "schedule", "chunks", "layers_per_stage", "plan", "recompute"),
    *("keep_checkpoints", "checkpoint_every", "tensorboard", "profile", "trace"),
}
# A plan rounds as it rounds; beside it a run may have been cut into other microbatches before.
_PLANNED = {"microbatch", "lanes", "slices", "cuts", "canonical"}


def check_same_run(saved: TrainConfig, config: TrainConfig) -> None:
    """Refuse to go on with settings that would have given other numbers."""
    free = _FREE | (_PLANNED if parallel_plan(config) is not None else set())
    for field in dataclasses.fields(config):
        before, now = getattr(saved, field.name), getattr(config, field.name)
        if field.name not in free and before != now:
            raise fail(field.name, repr(before), repr(now), "resume with the settings of the run")


def as_before(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """``config`` with what it leaves open as ``saved`` has it settled."""
    left_open: dict[str, Any] = {"dtype": "auto"}
    if parallel_plan(config) is None:
        left_open |= {"microbatch": None, "lanes": None}
    if config.plan is None:
        left_open |= {"slices": 1, "cuts": None}
    changes = {
        name: getattr(saved, name)
        for name, value in left_open.items()
        if getattr(config, name) == value
    }
    return dataclasses.replace(config, **changes)
