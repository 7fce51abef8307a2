"""Wide-ResNets that Alpa timed before its paper, on V100 of 32 GB: no rows of the ranking.

python -m benches.alpa_older

The row of one device says whether the device's rates hold for a wider model than the one that they
come from; the others, what is missing on several devices.

Reference: Alpa's public code, benchmark/plots, results of October 2021 on a p3dn.24xlarge, and the
settings of its weak scaling of that month.
"""

import sys
from collections.abc import Iterator

from benches.alpa_models import graphs_of
from benches.alpa_paper import Model
from benches.alpa_replay import line, replay
from benches.alpa_runs import Run
from benches.alpa_step import Replayed
from benches.no_options import no_options

_ROWS = ((1, 224, 8.656), (2, 320, 8.218), (4, 448, 8.085), (8, 640, 8.136))
"""GPUs, base channels and TFLOP/s per GPU, strategies searched for; 4 times as wide, 32 images in
one microbatch."""


def older_runs() -> tuple[Run, ...]:
    """Fewest devices first."""
    return tuple(
        Run(
            *(_model(num_gpus, channels), "one node", published, (1,), ((1, num_gpus),)),
            recompute="",
            memory_bytes=32 * 10**9,
        )
        for num_gpus, channels, published in _ROWS
    )


def _model(num_gpus: int, channels: int) -> Model:
    name = f"{channels} channels, 4 times as wide"
    return Model(
        "wide_resnet", name, num_gpus, channels, 50, width_factor=4, global_batch=32
    )  # fmt: skip


def replayed() -> Iterator[Replayed]:
    """The rows as the cost model predicts them."""
    for run in older_runs():
        yield replay(run, graphs_of(run.model))


def main() -> int:
    for row in replayed():
        print(line(row), flush=True)
    return 0


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(main())
