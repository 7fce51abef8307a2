"""``python -m blocks.sched.simulate --seed 1 --steps 100000``: see the package."""

import argparse
import sys
import time

from blocks.sched.simulate.options import Options
from blocks.sched.simulate.simulation import Simulation, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate the scheduler with seeded faults.")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--steps", type=int, default=100_000, help="steps per seed")
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        options = Options.from_seed(seed)
        print(options)
        began = time.monotonic()

        def show(simulation: Simulation) -> None:
            scheduler = simulation.scheduler
            print(
                f"\r{simulation.num_steps:>9} of {arguments.steps} steps, "
                f"{scheduler.num_running} running, {scheduler.num_waiting} waiting, "
                f"{scheduler.counters.num_requests} requests ",
                end="",
                file=sys.stderr,
                flush=True,
            )

        try:
            summary = simulate(options, arguments.steps, progress=show)
        except AssertionError as error:
            print(f"\n{error}")
            return 1
        print(file=sys.stderr)
        print(", ".join(f"{name} {count}" for name, count in summary.counts.items()))
        print(
            f"seed {seed}: {summary.steps} + {summary.liveness_steps} steps in "
            f"{time.monotonic() - began:.1f} s, 0 leaked blocks, digest {summary.digest}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
