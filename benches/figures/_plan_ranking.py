"""Figures of how well plans are ranked: on this machine, and against published rows."""

import functools
from collections.abc import Iterator

from benches.alpa_paper import models
from benches.alpa_replay import Family, Replayed, correlation, graphs_of, replay
from benches.figures.row import Measured, Row
from benches.plan_ranking import Ranked, machine_cluster, rank_plans, subjects

NIGHTLY = "python -m benches.figures --area plan --nightly"


def rows() -> Iterator[Row]:
    yield Row(
        "processor time of 40 plans each of 4 models, 1 to 4 gloo ranks on this machine, predicted "
        "against measured: rank correlation, worst model",
        ">= 0.90",
        "python -m benches.plan_ranking",
        lambda: _least("spearman", 0.90),
        nightly=True,
    )
    yield Row(
        "the same: time of the plan predicted to be best over the best measured, worst model",
        "<= 1.10",
        "python -m benches.plan_ranking",
        _regret,
        nightly=True,
    )
    yield Row(
        "the same: pairs of plans that differ by more than 1.3x in the right order, worst model",
        ">= 95 %",
        "python -m benches.plan_ranking",
        lambda: _least("pairs_right", 0.95),
        nightly=True,
    )
    families: dict[Family, str] = {"gpt": "GPT", "moe": "MoE", "wide_resnet": "Wide-ResNet"}
    for family, name in families.items():
        yield Row(
            f"Alpa's published rows, {name} on 2 to 16 V100, intra, inter and both (simulated): "
            "rank correlation of TFLOP/s per GPU",
            ">= 0.90",
            f"python -m benches.alpa_replay --family {family} --gpus 2 4 8 16",
            lambda family=family: _published(family),
            nightly=True,
        )


@functools.cache
def _ranked() -> tuple[Ranked, ...]:
    cluster = machine_cluster()
    return tuple(rank_plans(subject, cluster, 40) for subject in subjects())


def _least(name: str, target: float) -> Measured:
    found = [getattr(ranked, name) for ranked in _ranked()]
    text = ", ".join(f"{value:.3f}" for value in found)
    return Measured(f"{min(found):.3f} (of {text})", min(found) >= target)


def _regret() -> Measured:
    found = [ranked.regret for ranked in _ranked()]
    text = ", ".join(f"{value:.3f}" for value in found)
    return Measured(f"{max(found):.3f} (of {text})", max(found) <= 1.10)


@functools.cache
def _replayed(family: Family) -> tuple[Replayed, ...]:
    found = []
    for model in models(family):
        if 2 <= model.num_gpus <= 16:
            graphs = graphs_of(model)
            found += [replay(model, method, graphs) for method in ("intra", "inter", "auto")]
    return tuple(found)


def _published(family: Family) -> Measured:
    rows = _replayed(family)
    fits = sum(row.same_verdict for row in rows)
    value = correlation(rows)
    return Measured(f"{value:.3f}; fits or not: {fits} of {len(rows)}", value >= 0.90)
