"""Figures of real groups of tiny models, held against the same clusters simulated."""

from collections.abc import Iterator, Sequence

from benches import place_real
from benches.figures.row import Measured, Row
from recipes.place.measure import Compared, Gap

REAL = "python -m benches.place_real"
CLOCK_SECONDS = 8.0
"""Of traffic, a setting, where engines take turns on one core."""


def rows() -> Iterator[Row]:
    yield Row(
        "SLO attainment (TTFT and TPOT), simulated against real: "
        f"{sum(len(place.loads) for place in place_real.PLACES)} settings of up to four tiny "
        "models on 2 to 4 processes of this machine, replicated and shared, tp=2 and pp=2, "
        "profiles measured right before, same arrivals",
        "at least 20 settings, within 2 points on average, 4 at worst",
        REAL,
        _real,
        nightly=True,
    )
    yield Row(
        "the same with engines that compute on a clock of processor time, which neighbours on the "
        "machine do not move: placements of one-device groups",
        "within 2 points on average, 4 at worst",
        f"{REAL} --clock --seconds {CLOCK_SECONDS:g}",
        _clocked,
        nightly=True,
    )
    yield Row(
        "models that generate, bursty (CV 5), two devices: attainment when both groups host all "
        "models, against one model a group, real",
        "more, as simulated",
        f"{REAL} --direction",
        _direction,
        nightly=True,
    )


def _within(found: Sequence[Compared], least: int) -> Measured:
    gap = Gap.of(found)
    ok = len(found) >= least and gap.mean <= 2.0 and gap.worst <= 4.0
    return Measured(place_real.summary(found), ok)


def _real() -> Measured:
    return _within(place_real.run(), 20)


def _clocked() -> Measured:
    return _within(place_real.run(clock=True, seconds=CLOCK_SECONDS), 1)


def _direction() -> Measured:
    apart, together = place_real.direction()
    pairs = list(zip(apart, together, strict=True))
    real = all(two.real.attainment > one.real.attainment for one, two in pairs)
    simulated = all(two.simulated.attainment > one.simulated.attainment for one, two in pairs)
    return Measured(place_real.direction_summary(apart, together), real and simulated)
