"""A long prompt through pipeline stages: exact slices beside what engines do today, simulated.

python -m benches.prefill_chunks

The cost model is stated and simple: Llama-3 70B, layers shared evenly by stages of one H100 each,
400 TFLOP/s reached, 20 us a layer and run, no faster below 128 tokens; a hand-over takes 20 us and
moves 8 KiB a token at 50 GB/s. Time to the last token is ``sum t + (P - 1) max t``.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benches.no_options import no_options
from blocks.pipeline import flop_cost, slice_tokens, uniform_slices
from blocks.pipeline.slice_time import SliceTime
from blocks.pipeline.slicing import makespan_s

LAYERS, WIDTH, INNER = 80, 8192, 28672
FLOPS_PER_S, FIXED_S, FLOOR = 4e14, 20e-6, 128
LATENCY_S, BYTES_PER_S = 20e-6, 50e9
PAGE = 64
FIRST = 8192
"""Tokens of a first chunk as engines set them."""


class Makespans(NamedTuple):
    """Seconds to the last token, by rule; ``best_`` is over all first chunks and numbers."""

    exact: float
    greedy: float
    best_greedy: float
    uniform: float
    best_uniform: float


def stage_cost(num_stages: int) -> Callable[[Any, Any], Any]:
    """Seconds of a run on a stage, hand-over included; numbers or arrays."""
    surface = flop_cost(
        WIDTH,
        flops_per_s=FLOPS_PER_S,
        num_layers=LAYERS // num_stages,
        ffn_size=INNER,
        gated=True,
        kv_ratio=1 / 8,
        fixed_s=FIXED_S,
        floor=FLOOR,
    )
    forward = surface.forward.as_float() + SliceTime(
        fixed=LATENCY_S, per_token=2 * WIDTH / BYTES_PER_S
    )

    def cost(length: Any, start: Any) -> Any:
        return forward(length, start)

    cost.takes_arrays = True  # type: ignore[attr-defined]
    return cost


def greedy_equal_time(
    runtime: Callable[[float], float],
    seq_len: int,
    first: int,
    *,
    smoothing: float = 0.75,
    page: int = PAGE,
    least: float = 0.25,
) -> tuple[int, ...]:
    """Bounds by the rule of SGLang's dynamic chunking: every chunk to take as long as the first.

    With L tokens done, the next d tokens are such that ``runtime(L + d) - runtime(L)`` is the first
    chunk's runtime; the length used goes ``smoothing`` of the way from the first length to d, down
    to a multiple of ``page``, and is at least ``least`` of the first.

    Args:
        runtime: seconds of a prompt of so many tokens in one piece, convex.
    """
    bounds, target = [0, min(first, seq_len)], runtime(first) - runtime(0)
    while bounds[-1] < seq_len:
        done = bounds[-1]
        low, high = 0.0, float(first)
        for _ in range(40):
            middle = (low + high) / 2
            if runtime(done + middle) - runtime(done) < target:
                low = middle
            else:
                high = middle
        length = first + smoothing * (low - first)
        length = max(int(length) // page * page, int(first * least) // page * page, page)
        bounds.append(min(done + length, seq_len))
    return tuple(bounds)


def makespans(seq_len: int, num_stages: int) -> Makespans:
    """One prompt of ``seq_len`` tokens through ``num_stages`` stages."""
    cost = stage_cost(num_stages)

    def total(bounds: Sequence[int]) -> float:
        pairs = itertools.pairwise(bounds)
        return makespan_s([cost(b - a, a) for a, b in pairs], num_stages)

    def greedy(first: int) -> float:
        return total(greedy_equal_time(lambda n: cost(n, 0), seq_len, first))

    firsts = [n for n in range(256, 32768 + 1, 256) if n < seq_len]
    counts = range(1, min(seq_len // PAGE, 512) + 1)
    return Makespans(
        slice_tokens(cost, seq_len, num_stages, granularity=PAGE).total_s,
        greedy(min(FIRST, seq_len)),
        min(map(greedy, firsts)),
        total([*range(0, seq_len, FIRST), seq_len]),
        min(total(uniform_slices(seq_len, n, granularity=PAGE)) for n in counts),
    )


def main() -> int:
    print("tokens stages | exact s | greedy, best | uniform, best (times exact)")
    for seq_len in (8192, 32768, 131072):
        for stages in (4, 8):
            found = makespans(seq_len, stages)
            ratios = [value / found.exact for value in found[1:]]
            shown = " ".join(f"{ratio:6.3f}" for ratio in ratios)
            print(f"{seq_len:6} {stages:6} | {found.exact:7.3f} | {shown}")
    return 0


if __name__ == "__main__":
    no_options(__doc__)
    sys.exit(main())
