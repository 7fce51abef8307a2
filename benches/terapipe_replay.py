"""Replay published token pipelines: predicted speed-up beside published speed-up, row by row.

python -m benches.terapipe_replay                    # the tables
python -m benches.terapipe_replay --plot out.png     # and predicted against published, as a plot
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benches.terapipe_model import Cluster, StageCost, fit_cluster
from benches.terapipe_paper import FITTED, LONGER, SETTINGS, UNIFORM_S, Setting
from blocks.pipeline import BatchSlicing, slice_batch, uniform_slices

SUB_BATCHES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One setting under the model.

    without_s, with_s: seconds of an iteration cut by rows alone, and by rows and tokens: the best
        of each under the model.
    published_scheme_s: seconds of the paper's own slices under the model; None where it gives none.
    plan: what ``with_s`` belongs to.
    """

    setting: Setting
    without_s: float
    with_s: float
    published_scheme_s: float | None
    plan: BatchSlicing

    @property
    def speed_up(self) -> float:
        return self.without_s / self.with_s

    @property
    def error(self) -> float:
        """Of the predicted speed-up, relative to the published."""
        return self.speed_up / self.setting.speed_up - 1

    @property
    def fitted(self) -> bool:
        return self.setting.row in FITTED


def replay(setting: Setting, cluster: Cluster) -> Replayed:
    """The best cuts of a setting's batch under the model."""
    cost = StageCost(cluster, setting)
    whole, sliced = (
        slice_batch(
            cost,
            setting.seq_len,
            setting.rows_per_replica,
            setting.pipeline,
            sizes=SUB_BATCHES,
            granularity=granularity,
        )
        for granularity in (setting.seq_len, 8)
    )
    constant = cost.all_reduce_s()
    published = cost.iteration_s(setting.lengths) if setting.lengths else None
    return Replayed(setting, whole.total_s + constant, sliced.total_s + constant, published, sliced)


def replay_all(cluster: Cluster | None = None) -> list[Replayed]:
    """The ten rows and the three longer sequences; the fourth length, 2048, is row 5."""
    cluster = cluster or fit_cluster()
    return [replay(setting, cluster) for setting in (*SETTINGS, *LONGER)]


def median_error(replayed: Sequence[Replayed]) -> float:
    """Of the predicted speed-ups, over the settings that were not fitted."""
    return statistics.median(abs(row.error) for row in replayed if not row.fitted)


def sensitivity(cluster: Cluster, factor: float = 1.2) -> list[float]:
    """Median errors where each fitted number is multiplied or divided by ``factor``, ascending."""
    moved = [
        Cluster(cluster.gemm_flops_per_s * a, cluster.network_bytes_per_s * b)
        for a in (1 / factor, factor)
        for b in (1 / factor, factor)
    ]
    return sorted(median_error(replay_all(each)) for each in moved)


def table(replayed: Sequence[Replayed]) -> list[str]:
    """Lines for people: seconds and speed-ups, published and predicted."""
    head = f"{'setting':<23}{'T':>6}{'published s':>18}{'predicted s':>18}{'scheme s':>10}"
    lines = [head + f"{'published':>11}{'predicted':>11}{'error':>8}  slices"]
    for row in replayed:
        setting = row.setting
        scheme = "-" if row.published_scheme_s is None else f"{row.published_scheme_s:.3f}"
        published = f"{setting.without_s:.3f} -> {setting.with_s:.3f}"
        predicted = f"{row.without_s:.3f} -> {row.with_s:.3f}"
        lines.append(
            f"{setting.name:<23}{setting.seq_len:>6}{published:>18}{predicted:>18}{scheme:>10}"
            f"{setting.speed_up:>10.2f}x{row.speed_up:>10.2f}x{row.error:>+8.1%}"
            f"  {_shape(row.plan)}{'  (fitted)' if row.fitted else ''}"
        )
    predicted = [row for row in replayed if not row.fitted]
    worst = max(predicted, key=lambda row: abs(row.error))
    lines.append(
        f"{len(predicted)} predictions: median error {median_error(replayed):.1%}, "
        f"worst {worst.error:+.1%} ({worst.setting.name}, T = {worst.setting.seq_len})"
    )
    return lines


def _shape(plan: BatchSlicing) -> str:
    group = plan.groups[0]
    lengths = [b - a for a, b in zip(group.bounds, group.bounds[1:], strict=False)]
    return f"{len(plan.groups)} x {group.num_rows} x {len(lengths)} of {lengths[0]}..{lengths[-1]}"


def uniform_table(cluster: Cluster) -> list[str]:
    """Published and predicted seconds of uniform slicings."""
    lines = []
    for row, published in UNIFORM_S.items():
        setting = SETTINGS[row - 1]
        cost = StageCost(cluster, setting)
        for num_slices, seconds in published.items():
            bounds = uniform_slices(setting.seq_len, num_slices)
            lengths = [b - a for a, b in itertools.pairwise(bounds)]
            found = cost.iteration_s(lengths)
            lines.append(
                f"{setting.name:<24}{num_slices:>4} uniform slices: published {seconds:.3f} s, "
                f"predicted {found:.3f} s ({found / seconds - 1:+.1%})"
            )
    return lines


def plot(replayed: Sequence[Replayed], path: str) -> None:
    """Predicted against published speed-up, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(figsize=(6.4, 6))
    ends = [0.8, 11.5]
    axes.plot(ends, ends, color="0.4", linewidth=1, label="equal")
    axes.fill_between(
        ends, [x / 1.15 for x in ends], [x * 1.15 for x in ends], color="0.92", label="within 15 %"
    )
    sorts: list[tuple[str, str, Any]] = [
        ("fitted rows (13B)", "s", [row for row in replayed if row.fitted]),
        ("predicted rows", "o", [r for r in replayed if r.setting.row and not r.fitted]),
        ("predicted longer sequences", "^", [row for row in replayed if not row.setting.row]),
    ]
    for label, marker, rows in sorts:
        published = [row.setting.speed_up for row in rows]
        axes.scatter(published, [row.speed_up for row in rows], marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    names: dict[tuple[float, float], list[str]] = {}
    for row in replayed:  # rows at one place share a label
        at = round(row.setting.speed_up, 1), round(row.speed_up, 1)
        names.setdefault(at, []).append(str(row.setting.row or f"T = {row.setting.seq_len}"))
    for at, texts in names.items():
        longer = texts[0].startswith("T")
        offset, side = ((7, -10), "left") if longer else ((-6, 4), "right")
        axes.annotate(", ".join(texts), at, offset, textcoords="offset points", ha=side)
    ticks = [1, 1.5, 2, 3, 5, 7, 10]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.FixedLocator(ticks))
        axis.set_major_formatter(ticker.FormatStrFormatter("%gx"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("published speed-up of token slices")
    axes.set_ylabel("predicted speed-up")
    axes.set_title("Token pipelines on V100 clusters, replayed")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benches.terapipe_replay", description=__doc__)
    parser.add_argument("--plot", metavar="PNG", help="also draw predicted against published")
    options = parser.parse_args()
    cluster = fit_cluster()
    print(
        f"fitted to rows 4 and 5: products at {cluster.gemm_flops_per_s / 1e12:.1f} TFLOP/s, "
        f"network at {cluster.network_bytes_per_s / 1e9:.2f} GB/s"
    )
    replayed = replay_all(cluster)
    print("\n".join([*table(replayed), "", *uniform_table(cluster)]))
    least, *_, most = sensitivity(cluster)
    print(f"with both fitted numbers moved by a fifth: median error {least:.1%} to {most:.1%}")
    if options.plot:
        plot(replayed, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
