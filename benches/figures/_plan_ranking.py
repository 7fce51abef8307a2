"""Figures of how well plans are ranked: on this machine, and against published rows."""

import functools
import itertools
import sys
from collections.abc import Iterator

from benches.alpa_ceiling import ceiling, pairs_right, published
from benches.alpa_models import graphs_of
from benches.alpa_older import replayed
from benches.alpa_paper import Family
from benches.alpa_replay import correlation, line, ranked_runs, replay
from benches.alpa_step import Replayed
from benches.figures.row import Measured, Row
from benches.plan_ranking import Ranked, machine_cluster, rank_plans, subjects

FAMILIES: dict[Family, str] = {"gpt": "GPT", "moe": "MoE", "wide_resnet": "Wide-ResNet"}
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
    for family, name in FAMILIES.items():
        yield Row(
            f"Alpa's published rows, {name} on 1 to 64 V100, weak scaling by three methods and the "
            "ablation on one node, each as it was run (simulated): rank correlation of TFLOP/s",
            ">= 0.90",
            f"python -m benches.alpa_replay --family {family}",
            lambda family=family: _published(family),
            nightly=True,
        )
    yield Row(
        "Wide-ResNets that Alpa timed on 1, 2, 4 and 8 V100 before its paper, which are not ranked "
        "(simulated): TFLOP/s predicted over measured",
        "1 device: 0.97 to 1.03; all: 0.9 to 1.1",
        "python -m benches.alpa_older",
        _older,
        nightly=True,
    )
    for family, name in FAMILIES.items():
        yield Row(
            f"Alpa's published rows of {name}: the most that a predictor reaches that knew them up "
            "to 5 % (median of draws), and up to 2 %",
            "the ceiling of the row above",
            "python -m benches.alpa_ceiling",
            lambda family=family: _ceiling(family),
        )
    yield Row(
        "Alpa's published rows of all families: out of memory or not, as published",
        ">= 90 %",
        "python -m benches.alpa_replay",
        _verdicts,
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
    found: list[Replayed] = []
    for model, of_model in itertools.groupby(ranked_runs(family), lambda run: run.model):
        graphs = graphs_of(model)
        for run in of_model:
            found.append(replay(run, graphs))
            print(f"  {line(found[-1])}", file=sys.stderr, flush=True)
    return tuple(found)


def _published(family: Family) -> Measured:
    rows = _replayed(family)
    weak = [row for row in rows if not row.run.method.startswith("one node")]
    value = correlation(rows)
    fits = sum(row.predicted is not None and row.run.published is not None for row in rows)
    both = [
        (row.predicted, row.run.published)
        for row in rows
        if row.predicted is not None and row.run.published is not None
    ]
    right, far = pairs_right(*map(list, zip(*both, strict=True)))
    text = f"{value:.3f} of {fits} rows; weak scaling alone {correlation(weak):.3f}; of pairs that "
    text += f"differ by more than 10 % {right / far:.0%} in the right order"
    return Measured(text, value >= 0.90)


def _older() -> Measured:
    found = [(row.predicted or 0.0) / (row.run.published or 1.0) for row in replayed()]
    close = abs(found[0] - 1) <= 0.03 and max(abs(share - 1) for share in found) <= 0.1
    return Measured(", ".join(f"{share:.3f}" for share in found), close)


def _ceiling(family: Family) -> Measured:
    values = published(family)
    five, share = ceiling(values, 0.05)
    two, _ = ceiling(values, 0.02)
    return Measured(f"{five:.3f} ({share:.0%} of draws at 0.90 or more), {two:.3f}", True)


def _verdicts() -> Measured:
    rows = [row for family in FAMILIES for row in _replayed(family)]
    right = sum(row.same_verdict for row in rows)
    failed = sum(row.run.published is None for row in rows)
    called = sum(row.run.published is None and row.predicted is None for row in rows)
    text = f"{right} of {len(rows)}; {called} of the {failed} that ran out"
    return Measured(text, right >= 0.9 * len(rows))
