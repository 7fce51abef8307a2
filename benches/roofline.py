"""A roofline plot of saved results: every bench against what the machine reached in the same run.

python -m benches.roofline RESULT.json -o roofline.png --only attention
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benches.results import Entry, Results, find, load

COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#8e5aa8", "#b8860b", "#3d405b", "#d17b88", "#5e8c61")
MARKERS = "osD^vP*X"


def plotted(results: Results, only: str = "") -> list[Entry]:
    """Benches that can be drawn: with operations, bytes and peaks, the farthest left first."""
    wanted = ("flops", "bytes", "peak_gb_per_s", "peak_tflop_per_s")
    found = [e for e in results.entries.values() if only in e.name and all(map(e.info.get, wanted))]
    return sorted(found, key=lambda e: (intensity(e), e.name))


def intensity(entry: Entry) -> float:
    """FLOPs for each byte that must cross memory."""
    return entry.info["flops"] / entry.info["bytes"]


def roofs(entries: list[Entry]) -> tuple[float, dict[str, float]]:
    """Measured bytes a second, and measured FLOPs a second by dtype."""
    bandwidth = max(e.info["peak_gb_per_s"] for e in entries) * 1e9
    flops: dict[str, float] = {}
    for e in entries:
        dtype = e.info.get("dtype", "")
        flops[dtype] = max(flops.get(dtype, 0), e.info["peak_tflop_per_s"] * 1e12)
    return bandwidth, flops


def short(name: str) -> str:
    """A bench's name without what all names share.

    >>> short("attention::bench_paged_decode[llama8b-b8-ctx2k-ours]")
    'paged_decode llama8b-b8-ctx2k-ours'
    """
    return re.sub(r"^.*::(bench_)?", "", name).replace("[", " ").replace("]", "")


def draw(results: Results, entries: list[Entry]) -> Any:
    """The figure: a marker with its number a bench, the numbers named beside the plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bandwidth, peaks = roofs(entries)
    height = max(6.0, 1.6 + 0.2 * len(entries))
    figure, axes = plt.subplots(figsize=(13, height), layout="constrained")
    xs = [intensity(e) for e in entries]
    top = max(peaks.values())
    left, right = min(xs) / 3, max(*xs, top / bandwidth) * 3
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    for (dtype, flops), style in zip(
        sorted(peaks.items(), key=lambda p: -p[1]), ("-", "--", ":") * 9, strict=False
    ):
        ridge = flops / bandwidth
        axes.plot(
            [left, ridge, right], [left * bandwidth, flops, flops], style, color="0.25", lw=1.2
        )
        axes.annotate(
            f"{flops / 1e12:.3g} TFLOP/s {dtype}",
            (right, flops),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="0.25",
        )
    middle = (left * top / bandwidth) ** 0.5  # of the slope, on a logarithmic axis
    axes.annotate(
        f"{bandwidth / 1e9:,.0f} GB/s",
        (middle, middle * bandwidth),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="0.25",
    )
    groups = sorted({e.name.partition("[")[0] for e in entries})
    for number, e in enumerate(entries, 1):
        group = groups.index(e.name.partition("[")[0])
        colour, marker = COLOURS[group % len(COLOURS)], MARKERS[group % len(MARKERS)]
        x, y = intensity(e), e.info["flops"] / e.median_s
        share = e.info.get("share_of_roofline", 0)
        axes.plot(x, y, marker, color=colour, ms=7, label=f"{number}  {short(e.name)}  {share:.0%}")
        dx, dy = _offset(
            number,
            [(intensity(o), o.info["flops"] / o.median_s) for o in entries[: number - 1]],
            x,
            y,
        )
        axes.annotate(str(number), (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8)
    axes.set_xlabel("FLOPs per byte")
    axes.set_ylabel("FLOP/s reached")
    axes.set_title(results.title, fontsize=10)
    axes.grid(True, which="major", alpha=0.25)
    figure.legend(
        loc="outside right upper",
        fontsize=8,
        frameon=False,
        title="share of the roofline",
        handletextpad=0.4,
    )
    return figure


def _offset(number: int, before: list[tuple[float, float]], x: float, y: float) -> tuple[int, int]:
    """Where a number goes beside its marker: turned on when markers lie on one another."""
    near = sum(0.8 < x / ox < 1.25 and 0.6 < y / oy < 1.6 for ox, oy in before)
    return ((6, 4), (6, -10), (-14, 4), (-14, -10))[near % 4]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.roofline", description="Draw a roofline.")
    parser.add_argument("results", help="a results file, or a commit with saved results")
    parser.add_argument("-o", "--output", type=Path, default=Path("roofline.png"))
    parser.add_argument("--only", default="", help="benches whose name has this in it")
    options = parser.parse_args(arguments)
    try:
        results = load(find(options.results))
    except ValueError as error:
        parser.error(str(error))
    entries = plotted(results, options.only)
    if not entries:
        parser.error(
            "expected benches with FLOPs, bytes and peaks, got none; see benches/README.md"
        )
    if not options.output.absolute().parent.is_dir():
        parser.error(f"-o: expected a file in a folder that exists, got {options.output}")
    draw(results, entries).savefig(options.output, dpi=130)
    print(f"{len(entries)} benches drawn to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
