"""Figures of plans that are known: closed forms of communication."""

from collections.abc import Iterator

from benches.figures.row import Measured, Row
from tests.sharding.closed_forms import results

COMMAND = "python -m benches.figures --area plan"


def rows() -> Iterator[Row]:
    yield Row(
        "Alpa's closed forms (MLPs, two-axis meshes, forced batch, attention, transposes, views, "
        "sums, ZeRO, convolutions, lookups, experts), in fractions; where the optimum is below",
        "30 of 30 exact, none above",
        COMMAND,
        _closed_forms,
    )


def _closed_forms() -> Measured:
    found = results()
    right = sum(bool(one["exact"] and one["same_counts"] and one["proved"]) for one in found)
    better, worse = (sum(one["free"] == how for one in found) for how in ("better", "worse"))
    text = f"{right} of {len(found)} exact; below in {better}, above in {worse}"
    return Measured(text, right == len(found) and not worse)
