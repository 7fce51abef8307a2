"""Parallel plans of ``recipes.plan``: which runs have one, and what it asks of their settings."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks._checks import check, fail
from recipes.plan.config import PlanConfig
from recipes.plan.model import is_factory
from recipes.plan.parallel_plan import FORMAT, ParallelPlan
from recipes.plan.plan_file import read_plan
from recipes.train.config import TrainConfig


def parallel_plan(config: TrainConfig) -> ParallelPlan | None:
    """The plan of ``recipes.plan`` that a run follows; None for other runs.

    Raises:
        ValueError: a plan file that is none.
    """
    if config.plan is None:
        return None
    path = Path(config.plan)
    check(path.is_file(), "plan", "a file that recipes.plan or the plan verb wrote", str(path))
    return _read(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(4)
def _read(path: str, _changed: int) -> ParallelPlan | None:
    content = read_plan(path, "recipes.plan or the plan verb")
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return ParallelPlan.from_json(content)
    return None


REFUSED: dict[str, Any] = {
    "slices": (1, "planned stages take whole rows, no token slices"),
    "cuts": (None, "planned stages take whole rows, no token slices"),
    "document_mask": (False, "planned attention is plain and causal"),
    "window": (None, "planned attention is plain and causal"),
    "compile": (False, "planned operations run one by one"),
    "canonical": (True, "a plan says how gradients are added"),
}
"""What a planned run cannot have, with what it must be and why."""
DECIDED = ("dp", "pp", "tp", "fsdp", "chunks", "schedule", "layers_per_stage", "recompute")
"""Settings that a plan decides."""


def follow_plan(config: TrainConfig, plan: ParallelPlan) -> TrainConfig:
    """The config with the plan's microbatches.

    Raises:
        ValueError: a plan of another model or batch, settings beside it that it decides, or that
            planned runs cannot have.
    """
    asked = PlanConfig.from_json(plan.settings)
    differing = _differing(config, asked)
    _check_model(config, plan, asked, differing)
    rows = asked.rows(plan.num_microbatches)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    decided = {name: defaults[name] for name in DECIDED} | {"microbatch": rows, "lanes": 1}
    for name, value in decided.items():
        given = getattr(config, name)
        free = given in (defaults[name], value)
        check(free, name, f"{value!r} beside a plan", repr(given), "the plan decides it")
    check_plannable(config)
    if differing:
        name, (planned, got) = next(iter(differing.items()))
        settings = {
            "seq_len" if n == "context_len" else n: got for n, (_, got) in differing.items()
        }
        hint = "plan again with " + " ".join(f"{n}={got}" for n, got in settings.items())
        raise fail(name, f"{planned!r}, which the plan was made for", repr(got), hint)
    dtype = asked.dtype if config.dtype == "auto" else config.dtype
    return dataclasses.replace(config, **decided, dtype=dtype)


def _differing(config: TrainConfig, asked: PlanConfig) -> dict[str, tuple[Any, Any]]:
    """Settings beside the model that are others than the plan's: the plan's, and the run's."""
    dtype = asked.dtype if config.dtype == "auto" else config.dtype
    made_for = {
        "batch_size": (asked.batch_size, config.batch_size),
        "dtype": (asked.dtype, dtype),
        "optimizer": (asked.optimizer, config.optimizer),
    }
    if (tokens := _tokens(asked)) is not None:
        made_for["context_len"] = (tokens, config.context_len)
    return {name: both for name, both in made_for.items() if both[0] != both[1]}


def _check_model(
    config: TrainConfig,
    plan: ParallelPlan,
    asked: PlanConfig,
    differing: Mapping[str, tuple[Any, Any]],
) -> None:
    """
    Raises:
        ValueError: the plan of another model; says what else is other, too.
    """
    sizes = {name: (size, getattr(config, name)) for name, size in _sizes(asked).items()}
    sizes = {name: both for name, both in sizes.items() if both[0] != both[1]}
    decoder = is_factory(asked.model) or asked.model.startswith("decoder:")
    if decoder and not sizes:
        return
    run = ", ".join(f"{name}={got}" for name, (_, got) in sizes.items())
    planned = ", ".join(f"{name}={size}" for name, (size, _) in sizes.items())
    expected = f"one of this run's decoder{f', {run}' if run else ''}"
    size = planned or f"{plan.model.size} layers as plans have them"
    got = f"one of another model, {asked.model} ({size})"
    hint = "the plan verb makes one for this run"
    if differing:
        also = (f"{name} {planned!r}, not {got!r}" for name, (planned, got) in differing.items())
        hint += f"; the plan is made for {', '.join(also)}, too"
    raise fail("plan", expected, got, hint)


def check_plannable(config: TrainConfig) -> None:
    """
    Raises:
        ValueError: a setting that runs under a parallel plan cannot have, and why.
    """
    for name, (value, why) in REFUSED.items():
        given = getattr(config, name)
        check(given == value, name, f"{value!r} with a parallel plan", repr(given), why)


SIZES = (
    *("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads"),
    "tie_embeddings",
)
"""Settings of a run that its decoder has too; its vocabulary is known once the text is read."""


def _sizes(asked: PlanConfig) -> dict[str, Any]:
    """Of the plan's decoder; none where it is a factory's, or its folder is gone."""
    kind, _, size = asked.model.partition(":")
    if kind != "decoder":
        return {}
    from recipes.plan.families.decoder_sizes import DECODERS, decoder_config

    name = size.split(",")[0]
    if name not in DECODERS and not (Path(name) / "config.json").is_file():
        return {}
    planned = decoder_config(size)
    return {name: getattr(planned, name) for name in SIZES}


def _tokens(asked: PlanConfig) -> int | None:
    """Tokens of a row; None where the plan's model is a factory's."""
    if asked.seq_len is not None or not asked.model.startswith("decoder:"):
        return asked.seq_len
    from recipes.plan.families import family

    return family(asked.model).seq_len
