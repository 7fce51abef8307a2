"""What an outcome says of models, groups and stretches of time: the rows of the tables."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sched.cluster_sim import FAILED, FINISHED, REJECTED, UNPLACED
from blocks.sched.cluster_sim.generation import GenerationOutcome
from recipes.place.planning.task import AnyOutcome

PERCENTS = (50, 90, 99)
ALL = "all"


class Percentiles(NamedTuple):
    """In seconds; NaN where nothing was served."""

    p50: float
    p90: float
    p99: float


class ModelServed(NamedTuple):
    """What became of a model's requests; ``model`` is ``ALL`` for those of all models.

    attainment: share of its requests that met their limits; 1 of none.
    refused: at the front door. unplaced: no group was up that hosts it. failed: its group stopped.
    late: served, but not in time.
    ttft_s, tpot_s: None where models do not generate.
    """

    model: str
    replicas: int
    requests: int
    attainment: float
    refused: int
    unplaced: int
    failed: int
    late: int
    latency_s: Percentiles
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None


class GroupServed(NamedTuple):
    """``utilisation``: share of the time its stages were at work; ``requests``: it served."""

    group: int
    requests: int
    utilisation: float


class Stretch(NamedTuple):
    """``attainment`` of the requests that came within a stretch of time; 1 of none."""

    name: str
    requests: int
    attainment: float


def by_model(outcome: AnyOutcome) -> tuple[ModelServed, ...]:
    """A row a model, in the workload's order, and one for all first."""
    workload, hosted = outcome.workload, outcome.placement.groups_of
    everybody = np.ones(workload.num_requests, bool)
    rows = [_row(outcome, ALL, sum(len(g.models) for g in outcome.placement.groups), everybody)]
    for index, model in enumerate(workload.models):
        rows.append(_row(outcome, model, len(hosted(model)), workload.model == index))
    return tuple(rows)


def _row(outcome: AnyOutcome, name: str, replicas: int, mine: npt.NDArray[np.bool_]) -> ModelServed:
    status = outcome.status[mine]
    served = mine & outcome.finished
    met = outcome.met
    requests = int(mine.sum())
    generated = isinstance(outcome, GenerationOutcome)
    return ModelServed(
        name,
        replicas,
        requests,
        float(met[mine].mean()) if requests else 1.0,
        int((status == REJECTED).sum()),
        int((status == UNPLACED).sum()),
        int((status == FAILED).sum()),
        int((served & ~met).sum()),
        _percentiles((outcome.answered_s - outcome.workload.arrival_s)[served]),
        _percentiles(outcome.ttft_s[served]) if generated else None,
        _percentiles(outcome.tpot_s[served]) if generated else None,
    )


def _percentiles(values: npt.NDArray[np.float64]) -> Percentiles:
    if not len(values):
        return Percentiles(math.nan, math.nan, math.nan)
    p50, p90, p99 = np.percentile(values, PERCENTS).tolist()
    return Percentiles(p50, p90, p99)


def by_group(outcome: AnyOutcome) -> tuple[GroupServed, ...]:
    """A row a group."""
    shares = outcome.utilisation.tolist()
    finished = outcome.group[outcome.status == FINISHED]
    counts = np.bincount(finished, minlength=len(shares)).tolist()
    return tuple(
        GroupServed(at, count, share)
        for at, (count, share) in enumerate(zip(counts, shares, strict=True))
    )


def by_time(outcome: AnyOutcome, cuts_s: Sequence[float]) -> tuple[Stretch, ...]:
    """Attainment between moments: before the first, between each two, after the last. Those past
    the end cut nothing."""
    arrival_s, met = outcome.workload.arrival_s, outcome.met
    end_s = outcome.workload.duration_s
    edges = [0.0, *sorted({cut_s for cut_s in cuts_s if 0 < cut_s < end_s}), end_s]
    found = []
    for start_s, stop_s in itertools.pairwise(edges):
        last = stop_s == edges[-1]
        inside = (arrival_s >= start_s) & ((arrival_s < stop_s) | last)
        share = float(met[inside].mean()) if inside.any() else 1.0
        found.append(Stretch(f"{start_s:g} to {stop_s:g} s", int(inside.sum()), share))
    return tuple(found)
