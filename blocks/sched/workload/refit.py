"""Traffic like a given one, but more or less of it, and burstier or calmer."""

import numpy as np

from blocks._checks import check, check_positive
from blocks.sched.workload.arrivals import gamma_arrivals
from blocks.sched.workload.workload import Number, Workload

LEAST_GAPS = 3
"""A CV is told from at least this many gaps; with fewer arrivals a Poisson process is meant."""


def refit(
    workload: Workload,
    window_s: Number,
    rng: np.random.Generator,
    *,
    rate_scale: Number = 1.0,
    cv_scale: Number = 1.0,
) -> Workload:
    """Draw a workload anew from Gamma processes fitted to every window of every model.

    Each window of ``window_s`` seconds keeps its rate, times ``rate_scale``, and the CV of its
    gaps, times ``cv_scale``. Limits and lengths are those of requests for the same model, drawn
    with replacement.

    Reference: Li et al., AlpaServe, 2023, section 6.2 (workload).
    """
    check_positive("window_s", window_s)
    check(rate_scale >= 0, "rate_scale", "0 or more", rate_scale)
    check(cv_scale >= 0, "cv_scale", "0 or more", cv_scale)
    moments, sources = [np.zeros(0)], [np.zeros(0, np.intp)]
    for model in range(len(workload.models)):
        own = np.flatnonzero(workload.model == model)
        arrivals = workload.arrival_s[own]
        window = (arrivals // window_s).astype(np.int64)
        for index in np.unique(window):
            inside = arrivals[window == index]
            start = float(index * window_s)
            length = min(window_s, workload.duration_s - start)
            if length <= 0:
                continue
            rate = len(inside) / length * rate_scale
            drawn = start + gamma_arrivals(rate, _cv(inside) * cv_scale, float(length), rng)
            moments.append(np.minimum(drawn, workload.duration_s))
            sources.append(own[rng.integers(len(own), size=len(drawn))])
    source = np.concatenate(sources)
    return Workload.of(
        workload.models,
        np.concatenate(moments),
        workload.model[source],
        slo_s=workload.slo_s[source],
        tpot_s=workload.tpot_s[source],
        prompt_len=workload.prompt_len[source],
        output_len=workload.output_len[source],
        duration_s=workload.duration_s,
    )


def _cv(arrivals: np.ndarray) -> float:
    gaps = np.diff(arrivals)
    if len(gaps) < LEAST_GAPS or not gaps.any():
        return 1.0
    return float(gaps.std() / gaps.mean())
