"""Plans found here beside the best that Alpa published, under one cost model.

python -m benches.alpa_found --family gpt --gpus 2 8   # some
python -m benches.alpa_found                           # all ten, an hour

Alpa's plan has its stages, meshes and number of microbatches, and the best strategies inside of
stages; ours is free in all of these.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence

from benches.alpa_models import graphs_of, sequences_a_row
from benches.alpa_paper import FOUND, Family
from benches.alpa_runs import Run, runs
from benches.alpa_step import OPTIMIZERS, cluster_of, step_of
from blocks.sharding import OpGraph
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.compiled import compiled
from recipes.plan.search import search

FAMILIES: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")


@dataclasses.dataclass(frozen=True)
class Compared:
    """Predicted seconds of a step under Alpa's plan, infinite where it does not fit, and ours.

    ours: stages, microbatches and meshes in words.
    """

    run: Run
    alpa_s: float
    ours_s: float
    ours: str

    @property
    def as_good(self) -> bool:
        return self.ours_s <= self.alpa_s


def found_runs() -> tuple[Run, ...]:
    """The rows whose plans are on record in full."""
    wanted = {(plan.family, plan.num_gpus) for plan in FOUND}
    every = [run for family in FAMILIES for run in runs(family) if run.method == "auto"]
    return tuple(run for run in every if (run.model.family, run.model.num_gpus) in wanted)


def compare(run: Run, choices: int = 6) -> Compared:
    """
    Args:
        choices: numbers of microbatches that are looked at.
    """
    graphs, rows = graphs_of(run.model), run.rows // sequences_a_row(run.model)

    @functools.cache
    def graph(of: int) -> OpGraph:
        return compiled(graphs(of))

    theirs = step_of(
        run, run.counts[0], graph(rows // run.counts[0]), lambda one: one, as_run=False
    )
    config = PlanConfig(
        run.model.name,
        cluster="p3.16xlarge",
        batch_size=rows,
        microbatch_choices=choices,
        schedules="one_f_one_b",
        optimizer=OPTIMIZERS[run.model.family],
        memory_points=2,
    )
    plan = search(lambda of: LayerChain.of(graph(of)), cluster_of(run), config).plan
    meshes = ["x".join(map(str, stage.mesh.sizes)) for stage in plan.stages]
    said = f"{len(meshes)} stages on {', '.join(dict.fromkeys(meshes))}, {plan.num_microbatches}"
    alpa_s = theirs.step_s if theirs else float("inf")
    return Compared(run, alpa_s, plan.predicted.step_s, f"{said} microbatches")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.alpa_found", description=__doc__)
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--gpus", nargs="+", type=int, default=(2, 8, 16, 32, 64))
    options = parser.parse_args(argv)
    for run in found_runs():
        if run.model.family not in options.family or run.model.num_gpus not in options.gpus:
            continue
        begin = time.process_time()
        one = compare(run)
        print(
            f"{run.model.family} on {run.model.num_gpus} GPUs: Alpa's plan {one.alpa_s:.1f} s, "
            f"ours {one.ours_s:.1f} s ({one.ours}), {one.alpa_s / one.ours_s:.2f}x "
            f"[{time.process_time() - begin:.0f} s]",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
