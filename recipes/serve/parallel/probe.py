"""``probe``: what runs of tokens cost on the stages, measured on the running ranks."""

import itertools
import time
from collections.abc import Callable

import numpy as np

from recipes.serve.parallel.piece_cost import PieceCost, PieceSample, fit_piece_cost
from recipes.serve.plain_batch import PlainBatch

REPEATS = 3
"""Runs in the longer of the two steps whose difference is measured."""


def probe(
    run: Callable[[PlainBatch, list[int]], None],
    *,
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
        max_tokens: most tokens of a step. max_len: longest sequence.
        limit_s: after which lengths are not tried again, and longer ones not at all.

    Returns:
        None where too few measurements made sense.
    """
    lengths = [n for n in (1, 4, 16, 64, 256, 1024) if n <= max(1, max_tokens // 2)]
    started, taken = clock(), {}
    for round_ in range(3):
        for length, far in itertools.product(lengths, (False, True)):
            if clock() - started > limit_s:
                break
            start = max(0, max_len - length) if far else 0
            seconds = [
                _timed(run, length, start, count, block_size, clock) for count in (1, REPEATS)
            ]
            if round_:  # the first calls warm up
                taken.setdefault((length, start), []).append(seconds)
    samples = []
    for (length, start), pairs in taken.items():
        once, often = (min(pair[i] for pair in pairs) for i in (0, 1))
        seen = length * start + length * (length + 1) // 2
        samples.append(PieceSample(length, seen, (often - once) / (REPEATS - 1)))
    try:
        return fit_piece_cost(samples)
    except ValueError:
        return None


def _timed(
    run: Callable[[PlainBatch, list[int]], None],
    length: int,
    start: int,
    count: int,
    block_size: int,
    clock: Callable[[], float],
) -> float:
    batch = PlainBatch(
        np.zeros(length * count, np.int64),
        np.full(count, start, np.int64),
        np.full(count, length, np.int64),
        np.zeros(count, np.bool_),
        np.zeros((count, -(-(start + length) // block_size)), np.int32),
    )
    began = clock()
    run(batch, list(range(0, length * count + 1, length)))
    return clock() - began
