"""What memory buys: bubble of searched orders against activations a rank may keep, simulated.

python -m benches.trade_curve                    # the table
python -m benches.trade_curve --plot out.png     # and the curves
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benches.greedy_order import greedy_order
from blocks.pipeline import (
    SCHEDULES,
    Action,
    Kind,
    MemorySizes,
    PipelinePlan,
    Schedule,
    peak_bytes,
    plan_pipeline,
    simulate,
    unit_cost,
)

NUM_RANKS, NUM_SEQUENCES, NUM_SLICES, ALPHA = 8, 32, 16, 0.5
SETTING = "P=8, alpha=0.5, S=32, M=16, BW=2F"
SEQ_LEN = 1 << 17
COST = unit_cost(ALPHA, SEQ_LEN, input_gradient=(1, 1), weight_gradient=(1, 1)).as_float()
CUTS = {"uniform slices": ("uniform",), "equal-cost slices": ("equal_cost",)}
CAPS = (*(1 + i / 16 for i in range(17)), 2.25, 2.5, 3.0, 3.5)
GREEDY_CAPS = tuple(1 + i / 16 for i in range(0, 41, 3))


@dataclasses.dataclass(frozen=True)
class Point:
    """An order under a cap.

    cap, peak: bytes of a rank, in activations of one sequence on a rank (A).
    bubble: idle / (idle + busy), simulated.
    bound: no order of these slices under this cap has a smaller bubble.
    """

    cap: float
    peak: float
    bubble: float
    bound: float = 0.0


def plan_under(cap: float, cuts: Sequence[str]) -> PipelinePlan:
    """The plan whose ranks keep at most ``cap`` A."""
    return plan_pipeline(
        COST,
        SEQ_LEN,
        NUM_SEQUENCES,
        NUM_RANKS,
        memory_cap=cap * SEQ_LEN,
        num_slices=NUM_SLICES,
        cuts=cuts,
        split_weights=(False,),
    )


def searched(cap: float, cuts: Sequence[str]) -> Point:
    plan = plan_under(cap, cuts)
    bound = 1 - sum(plan.busy_s) / (plan.order_bound_s * NUM_RANKS)
    return Point(cap, max(plan.peak_bytes) / SEQ_LEN, plan.bubble, bound)


def curves(caps: Iterable[float] = CAPS) -> dict[str, list[Point]]:
    """Searched orders by kind of slices, with progress on a terminal."""
    found: dict[str, list[Point]] = {name: [] for name in CUTS}
    for cap in caps:
        for name, cuts in CUTS.items():
            if sys.stderr.isatty():
                print(f"\r{cap:.3f} A, {name}    ", end="", file=sys.stderr, flush=True)
            found[name].append(searched(cap, cuts))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found


def published(family: str, num_slices: int) -> Point:
    """A published order on uniform slices."""
    return _timed(SCHEDULES[family](NUM_RANKS, (num_slices,) * NUM_SEQUENCES))


def greedy(cap: float) -> Point:
    """The greedy order on uniform slices."""
    width = SEQ_LEN // NUM_SLICES
    forward_s, backward_s = (
        [float(COST.seconds(kind, width, i * width)) for i in range(NUM_SLICES)]
        for kind in (Kind.FORWARD, Kind.FULL_BACKWARD)
    )
    most = int(cap * NUM_SLICES)
    return _timed(greedy_order(NUM_RANKS, NUM_SEQUENCES, forward_s, backward_s, most))


def _timed(schedule: Schedule) -> Point:
    num_slices = schedule.num_slices[0]
    width = SEQ_LEN // num_slices

    def seconds(action: Action) -> float:
        return COST.seconds(action.kind, width, action.slice * width)

    sizes = MemorySizes(activations=lambda stage, num_tokens, start: 1)
    peak = float(max(peak_bytes(schedule, sizes))) / num_slices
    return Point(peak, peak, float(simulate(schedule, seconds).bubble))


def plot(
    found: dict[str, list[Point]], waits: Sequence[Point], strict: Point, plain: Point, path: Path
) -> None:
    """The curves as a picture; needs matplotlib.

    Args:
        waits: the greedy order under several caps.
        strict, plain: Seq1F1B and 1F1B.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=100, layout="constrained")
    for (name, points), colour in zip(found.items(), ("#c44e52", "#4c72b0"), strict=True):
        caps = [p.cap for p in points]
        axes.plot(caps, [p.bubble for p in points], "o-", ms=4, c=colour, label=f"{name}, searched")
        label = f"{name}, lower bound of any order"
        axes.plot(caps, [p.bound for p in points], ":", c=colour, label=label)
    axes.plot(
        [p.cap for p in waits], [p.bubble for p in waits], "x--", c="0.6", label="uniform, greedy"
    )
    axes.plot(strict.peak, strict.bubble, "s", ms=9, mfc="none", c="black")
    axes.annotate(
        f"Seq1F1B, uniform:\n{strict.bubble:.1%} at {strict.peak:.2f} A",
        (strict.peak, strict.bubble),
        (1.0, 0.02),
        arrowprops={"arrowstyle": "-", "color": "black"},
    )
    axes.axhline(plain.bubble, color="black", lw=0.8, ls="-.")
    axes.annotate(
        f"1F1B: {plain.bubble:.1%} at {plain.peak:.0f} A",
        (3.5, plain.bubble),
        (0, 4),
        textcoords="offset points",
        ha="right",
    )
    axes.set(xlabel="activations a rank may keep, in A (those of one sequence)", ylabel="bubble")
    axes.set(xlim=(0.95, 3.55), ylim=(0, 0.5))
    axes.set_title(f"What memory buys ({SETTING}; simulated)", fontsize=11)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bubble against memory of searched orders.")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the curves")
    options = parser.parse_args()
    found = curves()
    print(f"{SETTING}, simulated: bubble of the searched order (lower bound of any order)")
    print(f"{'cap':>8}" + "".join(f"{name:>22}" for name in found))
    for points in zip(*found.values(), strict=True):
        cells = (f"{p.bubble:.2%} ({p.bound:.2%})" for p in points)
        print(f"{points[0].cap:6.3f} A" + "".join(f"{cell:>22}" for cell in cells))
    if options.plot:
        waits = [greedy(cap) for cap in GREEDY_CAPS]
        strict, plain = published("seq1f1b", NUM_SLICES), published("one_f_one_b", 1)
        plot(found, waits, strict, plain, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
