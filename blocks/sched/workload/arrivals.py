"""Moments of arrival: renewal processes and processes whose rate wanders."""

from collections.abc import Sequence

import numpy as np

from blocks._checks import check, check_positive, is_number
from blocks.sched.workload.workload import Floats, Number, Numbers


def gamma_arrivals(
    rate: Number, cv: Number, duration_s: Number, rng: np.random.Generator
) -> Floats:
    """Arrivals in ``[0, duration_s)`` whose gaps are Gamma distributed: shape 1/cv², mean 1/rate.

    ``cv=1`` is the Poisson process, ``cv=0`` a regular beat with a random start. The process is
    stationary: the first gap is what is left of one that was under way, so that ``rate *
    duration_s`` arrivals are expected however short the time and large the CV.

    Reference: Cox, Renewal Theory, 1962, sections 2.4 and 5.2 (equilibrium renewal processes).
    """
    for name, value in (("rate", rate), ("cv", cv), ("duration_s", duration_s)):
        known = is_number(value) and 0 <= value < float("inf")
        check(known, name, "a number of 0 or more", repr(value))
    if rate == 0 or duration_s == 0:
        return np.zeros(0)
    if cv == 0:
        count = int(np.ceil(duration_s * rate)) + 1
        beat: Floats = np.arange(count, dtype=np.float64) / rate + rng.random() / rate
        return beat[beat < duration_s]
    shape, scale = 1 / cv**2, cv**2 / rate
    first = rng.gamma(shape + 1, scale) * rng.random()  # a gap met at random, and its rest
    parts, reached = [np.array([first])], first
    while reached < duration_s:
        missing = (duration_s - reached) * rate
        gaps = rng.gamma(shape, scale, int(missing + 4 * cv * missing**0.5) + 16)
        parts.append(reached + np.cumsum(gaps))
        reached = parts[-1][-1]
    arrivals = np.concatenate(parts)
    return arrivals[: np.searchsorted(arrivals, duration_s)]


def markov_arrivals(
    rates: Sequence[Number],
    stay_s: Sequence[Number],
    duration_s: Number,
    rng: np.random.Generator,
    jump: Numbers | None = None,
) -> Floats:
    """Markov-modulated Poisson arrivals in ``[0, duration_s)``: a state chooses the rate.

    The first state is drawn from the stationary distribution.

    Args:
        rates: requests a second in each state.
        stay_s: mean seconds in each state; stays are exponential.
        jump: chance of each next state by state, 0 on the diagonal; any other alike if None.

    Reference: Fischer and Meier-Hellstern, The Markov-modulated Poisson process cookbook, 1993.
    """
    count = len(rates)
    check(count >= 2, "rates", "at least two states", count)
    check(len(stay_s) == count, "stay_s", f"{count} numbers", len(stay_s))
    check(min(rates) >= 0, "rates", "0 or more", rates)
    check_positive("stay_s", min(stay_s))
    chances = _jumps(count, jump)
    share = stationary_shares(stay_s, chances)
    state, now = int(rng.choice(count, p=share)), 0.0
    parts: list[Floats] = []
    while now < duration_s:
        leaves = now + rng.exponential(stay_s[state])
        stop = min(leaves, duration_s)
        num_arrivals = rng.poisson(rates[state] * (stop - now))
        parts.append(np.sort(now + rng.random(num_arrivals) * (stop - now)))
        state, now = int(rng.choice(count, p=chances[state])), leaves
    arrivals = np.concatenate(parts) if parts else np.zeros(0)
    return arrivals[arrivals < duration_s]  # now + share * length may round up to the end


def stationary_shares(stay_s: Sequence[Number], jump: Numbers | None = None) -> Floats:
    """Share of the time spent in each state in the long run.

    >>> stationary_shares([1.0, 3.0]).tolist()
    [0.25, 0.75]
    """
    count = len(stay_s)
    chances = _jumps(count, jump)
    equations = np.vstack([chances.T - np.eye(count), np.ones(count)])
    visits = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
    weights = np.maximum(visits, 0) * np.asarray(stay_s, np.float64)
    return weights / weights.sum()


def _jumps(count: int, jump: Numbers | None) -> Floats:
    if jump is None:
        return (1 - np.eye(count)) / (count - 1)
    chances = np.asarray(jump, np.float64)
    ok = chances.shape == (count, count) and bool(np.all(chances >= 0))
    ok = ok and not np.diag(chances).any() and bool(np.allclose(chances.sum(1), 1))
    check(ok, "jump", f"{count} rows of chances that sum to 1, 0 on the diagonal", chances.tolist())
    return chances
