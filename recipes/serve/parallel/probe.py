"""``probe``: what runs of tokens cost on the stages, measured on the running ranks."""

import itertools
import time
from collections.abc import Callable

import numpy as np

from recipes.serve.parallel.piece_cost import PieceCost, PieceSample, fit_piece_cost
from recipes.serve.parallel.step_slices import StepSlices
from recipes.serve.plain_batch import PlainBatch

REPEATS = 3
"""Runs in the longer of the two steps whose difference is measured."""
LENGTHS = (1, 256, 16, 1024, 64, 4)
"""Tokens of the runs that are tried, the most telling first."""
Run = Callable[[PlainBatch, list[int]], None]


def probe(
    run: Run,
    *,
    num_stages: int,
    max_tokens: int,
    max_len: int,
    block_size: int,
    limit_s: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> PieceCost | None:
    """Measure runs of several lengths after several prefixes; nothing that counts is written.

    The time of a run is what each further equal run adds to a step: the slowest stage's, hand-over
    included, without what a step costs once. Blocks read and written are the null block.

    Args:
        run: computes a batch cut at the bounds and returns when it is done.
        num_stages: of the pipeline.
        max_tokens: most tokens of a step. max_len: longest sequence.
        limit_s: after which nothing is tried again.

    Returns:
        None where too few measurements made sense, or where a full step of one prompt, cut by
        them, is not done sooner than in one piece: with less than a core for every stage, say.
    """
    lengths = [n for n in LENGTHS if n <= max(1, max_tokens // 2)]
    pieces = [(n, start) for n in lengths for start in sorted({0, max(0, max_len - n)})]
    started, taken = clock(), {piece: [] for piece in pieces}
    _timed(run, *pieces[-1], 1, block_size, clock)  # warms up
    for round_, piece in itertools.product(range(3), pieces):
        if round_ and clock() - started > limit_s:
            break
        counts = (1, REPEATS)
        taken[piece].append([_timed(run, *piece, n, block_size, clock) for n in counts])
    samples = []
    for (length, start), pairs in taken.items():
        once, often = (min(pair[i] for pair in pairs) for i in (0, 1))
        seen = length * start + length * (length + 1) // 2
        samples.append(PieceSample(length, seen, (often - once) / (REPEATS - 1)))
    try:
        cost = fit_piece_cost(samples)
    except ValueError:
        return None
    whole = _batch(min(max_tokens, max_len), 0, 1, block_size)
    bounds = StepSlices(num_stages, cost).bounds(whole)
    cuts = [[0, whole.num_tokens], bounds]
    if len(bounds) == 2:
        return cost
    rounds = [[_clocked(run, whole, cut, clock) for cut in cuts] for _ in range(3)]
    in_one, in_runs = (min(pair[i] for pair in rounds) for i in (0, 1))
    return cost if in_runs < in_one else None


def _timed(
    run: Run,
    length: int,
    start: int,
    count: int,
    block_size: int,
    clock: Callable[[], float],
) -> float:
    """Seconds of a step of ``count`` equal runs."""
    batch = _batch(length, start, count, block_size)
    return _clocked(run, batch, list(range(0, length * count + 1, length)), clock)


def _clocked(run: Run, batch: PlainBatch, bounds: list[int], clock: Callable[[], float]) -> float:
    began = clock()
    run(batch, bounds)
    return clock() - began


def _batch(length: int, start: int, count: int, block_size: int) -> PlainBatch:
    """Entries in the null block, none sampled from."""
    return PlainBatch(
        np.zeros(length * count, np.int64),
        np.full(count, start, np.int64),
        np.full(count, length, np.int64),
        np.zeros(count, np.bool_),
        np.zeros((count, -(-(start + length) // block_size)), np.int32),
    )
