"""``fit_cost``: a cost surface from measured slices. Needs numpy, no torch."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks._checks import check
from blocks.pipeline.cost import CostSurface, Residual
from blocks.pipeline.slice_time import Number, SliceTime

FLOORS = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TERMS = ("fixed", "per_token", "per_floor", "per_prefix", "per_pair", "per_square")


class Sample(NamedTuple):
    """Seconds and bytes measured for one slice on one stage.

    num_tokens, start: its length and the tokens of prefix before it.
    forward_s, input_gradient_s, weight_gradient_s: seconds; where only a fused backward was
        measured, give it as input gradient with a weight gradient of 0.
    bytes_sent: what the stage sent forward.
    num_rows: equally cut sequences that went through together.
    """

    num_tokens: int
    start: int
    forward_s: Number
    input_gradient_s: Number
    weight_gradient_s: Number
    bytes_sent: int = 0
    num_rows: int = 1


def fit_cost(
    samples: Sequence[Sample],
    *,
    latency_s: Number = 0,
    seconds_per_byte: Number = 0,
    floors: Sequence[int] = FLOORS,
) -> CostSurface:
    """The surface with the least squared relative error over measured slices.

    Coefficients are at least zero (see ``SliceTime``) and found exactly: with six terms every
    subset of them can be tried. The floor of each pass is the one of ``floors`` that fits best.
    Repeated measurements of one slice count as often as they are given.

    Args:
        samples: slices of several lengths after several prefixes; without a prefix of more than 0
            tokens the cost of context cannot be seen, and without several lengths nothing can.
        latency_s, seconds_per_byte: of a transfer, measured apart.

    Raises:
        ValueError: no samples; a time that is not a number of at least 0; fewer than three
            different slices.
    """
    distinct = {sample[:2] for sample in samples}
    hint = "measure several lengths after several prefixes"
    check(len(distinct) >= 3, "samples", "at least 3 different slices", len(distinct), hint)
    check(max(s.start for s in samples) > 0, "samples", "some with a prefix", "none", hint)
    for sample in samples:
        ok = all(0 <= x < float("inf") for x in sample) and sample.num_tokens > 0
        check(ok, "sample", "positive tokens and finite seconds of at least 0", sample)
    passes = [_fit([(s, s[column]) for s in samples], floors) for column in (2, 3, 4)]
    errors = [
        (_error(time, sample, sample[column]), name, sample)
        for column, name, time in zip((2, 3, 4), ("F", "B", "W"), passes, strict=True)
        for sample in samples
        if sample[column] > 0
    ]
    check(bool(errors), "samples", "some seconds above 0", "none")
    worst, name, where = max(errors, key=lambda error: abs(error[0]))
    rms = (sum(error[0] ** 2 for error in errors) / len(errors)) ** 0.5
    tokens = [sample.num_tokens * sample.num_rows for sample in samples]
    sent = sum(s.bytes_sent * n for s, n in zip(samples, tokens, strict=True))
    return CostSurface(
        *passes,
        bytes_per_token=sent / sum(n * n for n in tokens),
        latency_s=latency_s,
        seconds_per_byte=seconds_per_byte,
        residual=Residual(abs(worst), rms, len(samples), (name, where.num_tokens, where.start)),
    )


def _error(time: SliceTime, sample: Sample, measured: Number) -> float:
    predicted = time(sample.num_tokens, sample.start, sample.num_rows)
    return float((predicted - measured) / measured)


def _fit(measured: Sequence[tuple[Sample, Number]], floors: Sequence[int]) -> SliceTime:
    """The best slice time for pairs of slice and seconds; zero seconds are left out."""
    import numpy as np

    measured = [(sample, seconds) for sample, seconds in measured if seconds > 0]
    if not measured:
        return SliceTime()
    seconds = np.array([seconds for _, seconds in measured])
    best: tuple[float, SliceTime] | None = None
    for floor in floors:
        terms = TERMS if floor else tuple(term for term in TERMS if term != "per_floor")
        units = [SliceTime(**{term: 1, "floor": floor}) for term in terms]
        columns = [[unit(s.num_tokens, s.start, s.num_rows) for s, _ in measured] for unit in units]
        rows = np.array(columns, float).T / seconds[:, None]  # relative: all should be 1
        loss, weights = non_negative_least_squares(rows, np.ones(len(measured)))
        found = dict(zip(terms, (float(w) for w in weights), strict=True))
        if best is None or loss < best[0] * (1 - 1e-9):
            best = loss, SliceTime(**found, floor=floor if found.get("per_floor") else 0)
    assert best is not None
    return best[1]


def non_negative_least_squares(rows: Any, target: Any) -> tuple[float, Any]:
    """Weights of at least 0 with the least ``|rows @ weights - target|²``, for few columns.

    Returns:
        that least square, and the weights. The optimum is the plain least squares solution on the
        columns it gives a positive weight, so the best subset whose solution is positive is it.
    """
    import numpy as np

    num_columns = rows.shape[1]
    scale = np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
    reduced: Any = np.linalg.qr(np.column_stack([rows / scale, target]), mode="r")
    best, weights = float(target @ target), np.zeros(num_columns)
    for size in range(1, num_columns + 1):
        for chosen in map(list, itertools.combinations(range(num_columns), size)):
            found = np.linalg.lstsq(reduced[:, chosen], reduced[:, -1], rcond=1e-12)[0]
            if (found < 0).any():
                continue
            loss = float(((reduced[:, chosen] @ found - reduced[:, -1]) ** 2).sum())
            if loss < best * (1 - 1e-12):
                best, weights = loss, np.zeros(num_columns)
                weights[chosen] = found / scale[chosen]
    return best, weights
