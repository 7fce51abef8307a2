"""Two sets of results side by side: what became slower, what faster, and what only wobbled.

    python -m benches.compare before.json after.json
    python -m benches.compare 1a2b3c4 5d6e7f8          # the newest saved results of two commits
    python -m benches.compare A B --only decode --threshold 3

A change counts when the medians differ by more than the threshold and the two spreads (the 10th to
the 90th percentile of the rounds) do not overlap. The exit status is 1 when something got slower.
"""

import argparse
import dataclasses
import math
import sys

from benches.results import Entry, Results, find, load


@dataclasses.dataclass(frozen=True)
class Change:
    """One bench measured twice.

    ratio: seconds after over seconds before; below 1 is faster.
    low, high: what the spreads of the two allow the ratio to be.
    verdict: ``slower``, ``faster`` or empty.
    """

    before: Entry
    after: Entry
    ratio: float
    low: float
    high: float
    verdict: str


def change(before: Entry, after: Entry, threshold: float) -> Change:
    """Compare two measurements of one bench; ``threshold`` is a fraction (0.05)."""
    ratio = after.median_s / before.median_s
    low, high = after.p10_s / before.p90_s, after.p90_s / before.p10_s
    verdict = ""
    if ratio > 1 + threshold and low > 1:
        verdict = "slower"
    elif ratio < 1 / (1 + threshold) and high < 1:
        verdict = "faster"
    return Change(before, after, ratio, low, high, verdict)


def compare(before: Results, after: Results, threshold: float, only: str = "") -> list[Change]:
    """Changes of the benches both have, the slowest first."""
    names = [name for name in before.entries if name in after.entries and only in name]
    changes = [change(before.entries[n], after.entries[n], threshold) for n in names]
    return sorted(changes, key=lambda c: -c.ratio)


def markdown(before: Results, after: Results, changes: list[Change]) -> list[str]:
    """The table, its summary and what only one of the two has."""
    lines = [
        f"before: {before.title}  ",
        f"after: {after.title}",
        "",
        "| bench | before | after | ratio (spread) | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.after.name} | {duration(c.before.median_s)} | {duration(c.after.median_s)} "
        f"| {c.ratio:.2f} ({c.low:.2f}-{c.high:.2f}) | {c.verdict} |"
        for c in changes
    ]
    slower, faster = (sum(c.verdict == word for c in changes) for word in ("slower", "faster"))
    lines += ["", f"{len(changes)} compared: {slower} slower, {faster} faster"]
    if changes:
        mean = math.exp(math.fsum(math.log(c.ratio) for c in changes) / len(changes))
        lines[-1] += f"; geometric mean of the ratios {mean:.3f}"
    for word, one, other in (("before", before, after), ("after", after, before)):
        alone = sorted(set(one.entries) - set(other.entries))
        if alone:
            lines.append(f"only {word}: {', '.join(alone)}")
    keys = ("device", "torch", "triton")
    differ = [k for k in keys if before.environment.get(k) != after.environment.get(k)]
    if differ:
        lines.append(f"Measured with another {' and '.join(differ)}: the ratios hold that too.")
    return lines


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> duration(0.00123), duration(4.56e-6), duration(2.0)
    ('1.23 ms', '4.56 us', '2 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.compare", description="Compare results.")
    parser.add_argument("before", help="a results file, or a commit with saved results")
    parser.add_argument("after")
    parser.add_argument("--only", default="", help="benches whose name has this in it")
    parser.add_argument("--threshold", type=float, default=5.0, help="percent; default 5")
    options = parser.parse_args(arguments)
    try:
        before, after = (load(find(what)) for what in (options.before, options.after))
    except ValueError as error:
        parser.error(str(error))
    changes = compare(before, after, options.threshold / 100, options.only)
    print("\n".join(markdown(before, after, changes)))
    return int(any(c.verdict == "slower" for c in changes))


if __name__ == "__main__":
    sys.exit(main())
