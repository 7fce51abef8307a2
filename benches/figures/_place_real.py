"""Figures of real groups of tiny models, held against the same clusters simulated."""

import functools
from collections.abc import Iterator, Sequence

from benches import place_real
from benches.figures.row import Measured, Row
from recipes.place.measure import Compared, Gap

REAL = "python -m benches.place_real"
CLOCK_SECONDS = 8.0
"""Of traffic, a setting, where engines take turns on one core."""


MEASURED = (
    "with the pace of the machine measured during the run (seconds of the groups' own steps over "
    "the profile's for the same loads, in windows of a quarter second)"
)


def rows() -> Iterator[Row]:
    settings = (
        f"{sum(len(place.loads) for place in place_real.PLACES)} settings of up to four tiny "
        "models on 2 to 4 processes of this machine, replicated and shared, tp=2 and pp=2, "
        "profiles measured right before, same arrivals"
    )
    yield Row(
        f"SLO attainment (TTFT and TPOT), simulated {MEASURED}, against real: {settings}; "
        "settings in which others had over 5 % of the cores are left out",
        "at least 20 settings, within 2 points on average, 4 at worst",
        REAL,
        _real,
        nightly=True,
    )
    yield Row(
        "the same run, simulated by the profile alone, at the mean of its steps timed again before "
        "and after: a machine whose speed drifts meanwhile is not in it",
        "",
        REAL,
        _real_by_profile,
        nightly=True,
    )
    yield Row(
        "attainment simulated against engines that compute on a clock of processor time, which "
        f"neighbours move less: placements of one-device groups, simulated {MEASURED}",
        "within 2 points on average, 4 at worst",
        f"{REAL} --clock --seconds {CLOCK_SECONDS:g}",
        _clocked,
        nightly=True,
    )
    yield Row(
        "engines on a clock of processor time, simulated by the profile alone",
        "",
        f"{REAL} --clock --seconds {CLOCK_SECONDS:g}",
        _clocked_by_profile,
        nightly=True,
    )
    yield Row(
        "models that generate, bursty (CV 4), two devices: attainment when both groups host all "
        "models, against one model a group, real",
        "more, as simulated",
        f"{REAL} --direction",
        _direction,
        nightly=True,
    )


@functools.cache
def _played(clock: bool) -> tuple[Compared, ...]:
    """Both rows of a run are of the same one."""
    seconds = CLOCK_SECONDS if clock else place_real.SECONDS
    return tuple(place_real.run(clock=clock, seconds=seconds))


def _within(found: Sequence[Compared], least: int) -> Measured:
    kept = place_real.counted(found)
    ok = len(kept) >= least
    if ok:
        gap = Gap.of(kept)
        ok = gap.mean <= 2.0 and gap.worst <= 4.0
    return Measured(place_real.summary(found), ok)


def _real() -> Measured:
    return _within(_played(False), 20)


def _real_by_profile() -> Measured:
    return Measured(place_real.summary(_played(False), by_profile=True), None)


def _clocked() -> Measured:
    return _within(_played(True), 1)


def _clocked_by_profile() -> Measured:
    return Measured(place_real.summary(_played(True), by_profile=True), None)


def _direction() -> Measured:
    apart, together = place_real.direction()
    pairs = list(zip(apart, together, strict=True))
    real = all(two.real.attainment > one.real.attainment for one, two in pairs)
    simulated = all(two.simulated.attainment > one.simulated.attainment for one, two in pairs)
    return Measured(place_real.direction_summary(apart, together), real and simulated)
