"""Workloads from rates: power laws over models, Gamma gaps, rates that wander."""

from collections.abc import Callable, Sequence

import numpy as np

from blocks._checks import check, check_count, is_number
from blocks.sched.workload.arrivals import gamma_arrivals, markov_arrivals
from blocks.sched.workload.workload import Floats, Number, Numbers, Workload


def power_law_rates(num_models: int, total: Number, exponent: Number = 0.5) -> Floats:
    """Rates of models that sum to ``total``: the k-th in proportion to ``k ** -exponent``.

    Exponent 0 is the same for all.

    >>> power_law_rates(4, 12, 1.0).round(2).tolist()
    [5.76, 2.88, 1.92, 1.44]
    """
    check_count("num_models", num_models)
    check(is_number(total) and total >= 0, "total", "requests a second, 0 or more", repr(total))
    check(is_number(exponent), "exponent", "a number", repr(exponent))
    weights = np.arange(1, num_models + 1, dtype=np.float64) ** -exponent
    return weights * (total / weights.sum())


def gamma_workload(
    rates: Sequence[Number] | Floats,
    cv: Number | Sequence[Number],
    duration_s: Number,
    rng: np.random.Generator,
    models: Sequence[str] | None = None,
    slo_s: Number = float("inf"),
) -> Workload:
    """One Gamma process for each model; see ``gamma_arrivals``.

    Args:
        rates: requests a second, a model.
        cv: coefficient of variation of the gaps, for all or a model.
        models: their names; "0", "1", ... if None.
        slo_s: time limit of every request; see also ``Workload.with_slo``.

    >>> made = gamma_workload([50, 5], 4.0, 1000, np.random.default_rng(0))
    >>> (made.rates() / [50, 5]).round(1).tolist(), round(made.cv("0"))
    ([1.0, 1.0], 4)
    """
    cvs = np.broadcast_to(np.asarray(cv, np.float64), (len(rates),))

    def arrivals(index: int) -> Floats:
        return gamma_arrivals(float(rates[index]), float(cvs[index]), duration_s, rng)

    return _of_streams(len(rates), arrivals, duration_s, models, slo_s)


def poisson_workload(
    rates: Sequence[Number] | Floats,
    duration_s: Number,
    rng: np.random.Generator,
    models: Sequence[str] | None = None,
    slo_s: Number = float("inf"),
) -> Workload:
    """One Poisson process for each model: a Gamma process with a CV of 1."""
    return gamma_workload(rates, 1.0, duration_s, rng, models, slo_s)


def markov_workload(
    rates: Sequence[Sequence[Number]],
    stay_s: Sequence[Number],
    duration_s: Number,
    rng: np.random.Generator,
    models: Sequence[str] | None = None,
    slo_s: Number = float("inf"),
    jump: Numbers | None = None,
) -> Workload:
    """One Markov-modulated process for each model, with states of its own; see
    ``markov_arrivals``.

    Args:
        rates: for each model its rate in each state.
    """

    def arrivals(index: int) -> Floats:
        return markov_arrivals(rates[index], stay_s, duration_s, rng, jump)

    return _of_streams(len(rates), arrivals, duration_s, models, slo_s)


def _of_streams(
    count: int,
    arrivals: Callable[[int], Floats],
    duration_s: Number,
    models: Sequence[str] | None,
    slo_s: Number,
) -> Workload:
    names = [str(index) for index in range(count)] if models is None else list(models)
    check(len(names) == count, "models", f"{count} names", len(names))
    streams = [arrivals(index) for index in range(count)]
    index = np.repeat(np.arange(count), [len(stream) for stream in streams])
    moments = np.concatenate(streams) if streams else np.zeros(0)
    return Workload.of(names, moments, index, slo_s=slo_s, duration_s=duration_s)
