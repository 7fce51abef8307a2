"""Measure what token slices of a decoder stage cost here, and fit a surface to it.

python -m benches.slice_cost                    # 2 layers of width 512, one thread, CPU time
python -m benches.slice_cost --width 1024 --seq-len 4096 --rounds 5

Rounds of a step are run with the executor, cut in several ways; every action is timed apart. The
surface is fitted to some of the cuts and predicts the others, which it has not seen.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from blocks.pipeline import (
    CostSurface,
    Executor,
    Kind,
    Sample,
    TraceEvent,
    fit_cost,
    in_process_transports,
    uniform_slices,
)
from blocks.pipeline.schedules import zb_h1
from recipes.model import ModelConfig
from recipes.train.stage import DecoderStage

KINDS = (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT)


class Measured(NamedTuple):
    """What was found.

    surface: fitted to ``fitted`` cuts.
    held_out: relative errors of the other cuts' slices, of each kind.
    whole: relative errors of the sums over the other cuts, all kinds together.
    """

    surface: CostSurface
    held_out: list[float]
    whole: list[float]


def stage(width: int, num_layers: int, seq_len: int) -> DecoderStage:
    """A stage of a small vocabulary: embedding and head cost next to nothing."""
    heads = width // 64
    config = ModelConfig(
        family="llama",
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        max_positions=seq_len,
    )
    made = DecoderStage(config, range(num_layers))
    made.init(0)
    return made


def sample(module: DecoderStage, cuts: Sequence[Sequence[int]], rounds: int) -> list[list[Sample]]:
    """Least CPU seconds of every slice of every cut, over rounds in which the cuts take turns."""
    seq_len = cuts[0][-1]
    data = {
        name: torch.randint(256, (1, seq_len), generator=torch.Generator().manual_seed(k))
        for k, name in enumerate(("inputs", "labels"))
    }
    taken: list[dict[tuple[Kind, int], list[float]]] = [{} for _ in cuts]
    heard: list[TraceEvent] = []
    executors = [
        Executor(
            0,
            zb_h1(1, (len(cut) - 1,)),
            {0: module},
            in_process_transports(1)[0],
            wire=lambda source, target, num_tokens: [],
            on_event=heard.append,
        )
        for cut in cuts
    ]
    for round_ in range(rounds + 1):
        for cut, executor, into in zip(cuts, executors, taken, strict=True):
            heard.clear()
            executor.step([data], [cut], loss_scale=1.0)
            module.zero_grad(set_to_none=True)
            if round_ == 0:
                continue  # first calls compile and allocate
            for event in heard:
                where = event.action.kind, event.action.slice
                into.setdefault(where, []).append(event.cpu_ns / 1e9)
    return [
        [
            Sample(
                cut[k + 1] - cut[k],
                cut[k],
                *(min(into[kind, k]) for kind in KINDS),
                bytes_sent=4 * module.config.hidden_size * (cut[k + 1] - cut[k]),
            )
            for k in range(len(cut) - 1)
        ]
        for cut, into in zip(cuts, taken, strict=True)
    ]


def measure(
    width: int = 512,
    num_layers: int = 2,
    seq_len: int = 2048,
    rounds: int = 5,
    fit_to: Sequence[int] = (1, 2, 8, 32),
    predict: Sequence[int] = (4, 16),
) -> Measured:
    """Fit to uniform cuts into some numbers of slices; predict others, and a falling cut."""
    fitted = [uniform_slices(seq_len, count) for count in fit_to]
    others = [uniform_slices(seq_len, count) for count in predict]
    others.append(tuple(seq_len * share // 16 for share in (0, 5, 9, 12, 14, 16)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = sample(stage(width, num_layers, seq_len), [*fitted, *others], rounds)
    finally:
        torch.set_num_threads(threads)
    surface = fit_cost([s for cut in found[: len(fitted)] for s in cut])
    held_out, whole = [], []
    for cut in found[len(fitted) :]:
        pairs = [
            (surface.seconds(kind, s.num_tokens, s.start), s[2 + k])
            for s in cut
            for k, kind in enumerate(KINDS)
        ]
        held_out += [predicted / seconds - 1 for predicted, seconds in pairs]
        whole.append(sum(p for p, _ in pairs) / sum(s for _, s in pairs) - 1)
    return Measured(surface, held_out, whole)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benches.slice_cost", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.width, options.layers, options.seq_len, options.rounds)
    for kind in ("forward", "input_gradient", "weight_gradient"):
        print(f"{kind}: {getattr(found.surface, kind)}")
    print(found.surface.residual)
    errors = sorted(abs(error) for error in found.held_out)
    steps = ", ".join(f"{error:+.1%}" for error in found.whole)
    print(f"cuts not fitted: median error of a slice {statistics.median(errors):.1%}, ", end="")
    print(f"worst {errors[-1]:.1%}; of a whole step {steps}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
