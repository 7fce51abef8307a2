"""What became of models and of groups, as the rows of a table of words."""

from collections.abc import Callable, Mapping, Sequence

from recipes.place.planning.served import ModelServed, by_group
from recipes.place.planning.tables import seconds, share
from recipes.place.planning.task import AnyOutcome

Rows = tuple[list[str], list[list[str]]]
"""The head, and the rows below it."""


def model_rows(
    models: Sequence[ModelServed], counts: Mapping[str, Callable[[ModelServed], int]]
) -> Rows:
    """A row a model.

    Args:
        counts: of requests that were not served in time, by the column's name.
    """
    timed = [("latency", "latency_s")]
    if models[0].ttft_s is not None:
        timed = [("TTFT", "ttft_s"), ("TPOT", "tpot_s"), *timed]
    head = ["model", "replicas", "requests", "in time", *counts]
    head += [f"{name} p50 / p90 / p99" for name, _ in timed]
    rows = [
        [
            *(one.model, str(one.replicas), f"{one.requests:,}", share(one.attainment)),
            *(f"{count(one):,}" for count in counts.values()),
            *(" / ".join(map(seconds, getattr(one, field))) for _, field in timed),
        ]
        for one in models
    ]
    return head, rows


def group_rows(outcome: AnyOutcome) -> Rows:
    """A row a group."""
    rows = [
        [
            f"group {one.group}",
            str(group.configuration),
            f"{one.requests:,}",
            share(one.utilisation),
        ]
        for one, group in zip(by_group(outcome), outcome.placement.groups, strict=True)
    ]
    return ["", "op x pp", "served", "at work"], rows
