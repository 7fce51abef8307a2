"""``python -m blocks.sched.simulate --seed 1 --steps 100000``: see the package."""

import argparse
import sys
import time

from blocks._checks import check_count
from blocks.sched.simulate.options import Options
from blocks.sched.simulate.simulation import Simulation, simulate

TELL_EVERY_S = 5.0
"""Where progress is no line of a terminal that is written over."""


def main() -> int:
    """Exit status: 0 all right; 1 something wrong; 2 options that do not fit; 130 interrupted."""
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run() -> int:
    parser = argparse.ArgumentParser(
        "python -m blocks.sched.simulate",
        description="Simulate the scheduler with seeded faults; status 1 where anything is wrong.",
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--steps", type=int, default=100_000, help="steps per seed")
    arguments = parser.parse_args()
    try:
        check_count("seeds", arguments.seeds)
        check_count("steps", arguments.steps)
    except ValueError as error:
        parser.error(str(error))
    redrawn = sys.stderr.isatty()
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        options = Options.from_seed(seed)
        print(options)
        began = told = time.monotonic()

        def show(simulation: Simulation) -> None:
            nonlocal told
            due = redrawn or time.monotonic() >= told + TELL_EVERY_S
            if not due and simulation.num_steps < arguments.steps:
                return
            told, scheduler = time.monotonic(), simulation.scheduler
            line = (
                f"{simulation.num_steps:>9} of {arguments.steps} steps, "
                f"{scheduler.num_running} running, {scheduler.num_waiting} waiting, "
                f"{scheduler.counters.num_requests} requests"
            )
            start, end = ("\r", " ") if redrawn else ("", "\n")
            print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

        try:
            summary = simulate(options, arguments.steps, progress=show)
        except AssertionError as error:
            print(f"\n{error}")
            return 1
        if redrawn:
            print(file=sys.stderr)
        print(", ".join(f"{name} {count}" for name, count in summary.counts.items()))
        print(
            f"seed {seed}: {summary.steps} + {summary.liveness_steps} steps in "
            f"{time.monotonic() - began:.1f} s, 0 leaked blocks, digest {summary.digest}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
