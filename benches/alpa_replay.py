"""Replay Alpa's published experiments: predicted beside published TFLOP/s, row by row.

python -m benches.alpa_replay --family gpt --gpus 1 2 4 8   # some rows
python -m benches.alpa_replay                               # all of them, minutes

Every row is predicted as it was run (``alpa_runs``): its stages, meshes, microbatches and
recomputation are given, the strategies inside of a stage are searched for, and where several
numbers of microbatches were tried the best counts. Nothing is fitted to the rows: the share of the
peak that a device reaches comes from two rows of one device (GPT and Wide-ResNet of the ablation),
which are not ranked. As in the artifact, the FLOPs of a row are those of the published formulas for
transformers and those that are executed for convolutional networks.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence

from benches.alpa_models import graphs_of, sequences_a_row
from benches.alpa_one_node import one_node_runs
from benches.alpa_paper import Family
from benches.alpa_runs import Run, runs
from benches.alpa_step import Replayed, step_of
from benches.plan_ranking import spearman
from blocks.sharding import OpGraph

Graphs = Callable[[int], OpGraph]


def replay(run: Run, graphs: Graphs) -> Replayed:
    """What a row comes to under the cost model."""
    rows = run.rows // sequences_a_row(run.model)
    counts = [count for count in run.counts if rows % count == 0]
    steps = [step_of(run, count, graphs(rows // count)) for count in counts]
    return max((step for step in steps if step), key=_rate, default=Replayed(run, None))


def _rate(row: Replayed) -> float:
    return row.predicted or 0.0


def correlation(rows: Sequence[Replayed]) -> float:
    """Rank correlation of the rows that fit, by both accounts."""
    pairs = [
        (row.predicted, row.run.published)
        for row in rows
        if row.predicted is not None and row.run.published is not None
    ]
    predicted, published = zip(*pairs, strict=True)
    return spearman(predicted, published)


def ranked_runs(family: Family) -> tuple[Run, ...]:
    """All rows of a family but those of one device that the device's rate is taken from."""
    fitted = one_node_runs(family)[:1] if family != "moe" else ()
    return tuple(run for run in (*runs(family), *one_node_runs(family)) if run not in fitted)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.alpa_replay", description=__doc__)
    families: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")
    parser.add_argument("--family", nargs="+", choices=families, default=families)
    parser.add_argument("--gpus", nargs="+", type=int, default=(1, 2, 4, 8, 16, 32, 64))
    options = parser.parse_args(argv)
    for family in options.family:
        rows = []
        chosen = [run for run in ranked_runs(family) if run.model.num_gpus in options.gpus]
        for model, of_model in itertools.groupby(chosen, lambda run: run.model):
            graphs = graphs_of(model)
            for run in of_model:
                begin = time.process_time()
                rows.append(replay(run, graphs))
                print(f"{line(rows[-1])} [{time.process_time() - begin:.0f} s]", flush=True)
        if len(rows) > 2:
            verdicts = sum(row.same_verdict for row in rows)
            found = f"Spearman {correlation(rows):.3f}; fits or not: {verdicts} of {len(rows)}"
            print(f"{family}: {found}")
    return 0


def line(row: Replayed) -> str:
    """A row in words."""
    run = row.run
    published, predicted = (
        "out of memory" if x is None else f"{x:.2f}" for x in (run.published, row.predicted)
    )
    stages = len(run.meshes)
    meshes = ", ".join("x".join(map(str, sizes)) for sizes, _ in itertools.groupby(run.meshes))
    return (
        f"{run.model.family} {run.model.name} on {run.model.num_gpus} GPUs, {run.method} "
        f"({stages} on {meshes}, {row.num_microbatches} microbatches): published {published}, "
        f"predicted {predicted} TFLOP/s per GPU, {row.peak_bytes / 1e9:.1f} GB, waiting "
        f"{row.bubble:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
