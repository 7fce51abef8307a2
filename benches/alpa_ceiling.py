"""How well Alpa's published rows can be ranked by a predictor that is off by so much.

python -m benches.alpa_ceiling

Rows whose TFLOP/s lie close together are ranked by chance. A predictor that knew every published
figure up to a random factor is drawn many times; what its rank correlation comes to is the most
that can be asked for at that accuracy. The rows themselves were not measured more exactly: one plan
that was timed on several days has figures of its own each time.
"""

import math
import random
import statistics
import sys
from collections.abc import Sequence

from benches.alpa_paper import Family
from benches.alpa_replay import ranked_runs
from benches.no_options import no_options
from benches.plan_ranking import spearman

FAMILIES: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")
ERRORS = (0.01, 0.02, 0.05, 0.08)
"""Standard deviations of the factor. Aceso, which measures every operation first, published errors
of its own predictor of up to 5.3 % on GPT and 9.3 % on Wide-ResNet."""

CLOSE = 1.1
"""Rows closer than this are as good as tied."""

SAME_PLAN: dict[str, tuple[float, ...]] = {
    "GPT 350M on 1 GPU, 64 microbatches": (46.20, 44.23, 45.07),
    "MoE 690M on 2 GPUs, data 2, 32 microbatches": (42.17, 43.03),
    "GPT 3072 wide on 2 GPUs, data 2, minutes apart": (61.99, 61.95),
}
"""TFLOP/s of plans that were timed more than once."""


def published(family: Family) -> list[float]:
    """The figures that are ranked: of rows that ran."""
    return [run.published for run in ranked_runs(family) if run.published is not None]


def far_pairs(values: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of rows that differ by more than ``CLOSE``, the slower one first."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return [
        (a, b)
        for at, a in enumerate(order)
        for b in order[at + 1 :]
        if values[b] > CLOSE * values[a]
    ]  # fmt: skip


def pairs_right(predicted: Sequence[float], values: Sequence[float]) -> tuple[int, int]:
    """Of the pairs that differ by more than ``CLOSE``: in the right order, and all."""
    pairs = far_pairs(values)
    return sum(predicted[a] < predicted[b] for a, b in pairs), len(pairs)


def ceiling(values: Sequence[float], error: float, draws: int = 2000) -> tuple[float, float]:
    """Rank correlation of a predictor that is off by a factor of ``exp(error * normal)``.

    Returns:
        The median of the draws, and how many of them are 0.90 or more, as a share.
    """
    draw = random.Random(0)
    found = [
        spearman([value * math.exp(error * draw.gauss(0, 1)) for value in values], values)
        for _ in range(draws)
    ]
    return statistics.median(found), sum(one >= 0.90 for one in found) / draws


def main() -> int:
    for family in FAMILIES:
        values = published(family)
        far = len(far_pairs(values))
        count = len(values) * (len(values) - 1) // 2
        print(
            f"{family}: {len(values)} rows, {far} of {count} pairs differ by more than "
            f"{CLOSE - 1:.0%}; rank correlation of a predictor that is off by"
        )
        for error in ERRORS:
            median, share = ceiling(values, error)
            print(f"  {error:.0%}: {median:.3f}, {share:.0%} of draws at 0.90 or more")
    for name, times in SAME_PLAN.items():
        print(f"{name}: {', '.join(map(str, times))}, {max(times) / min(times) - 1:.1%} apart")
    return 0


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(main())
