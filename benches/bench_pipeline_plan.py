"""What planning token pipelines costs: slices, batches and stages, by CPU time."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from blocks.pipeline import (
    CostSurface,
    flop_cost,
    partition_layers,
    slice_batch,
    slice_tokens,
    uniform_slices,
    unit_cost,
)
from blocks.pipeline.slicing import makespan_s

SEQ_LENS = (2048, 8192, 32768, 131072)
NUM_STAGES = (4, 8, 16)
OVERHEADS = (0.0, 0.001)
"""Seconds a slice costs beside the 1 that the whole sequence's forward takes."""


def surface(seq_len: int, overhead: float, alpha: float = 0.5) -> CostSurface:
    """One forward of 1 s, ``alpha`` of it attention, and a fixed cost of every slice."""
    return dataclasses.replace(unit_cost(alpha, seq_len), latency_s=overhead / 2)


def cpu_s(call: Callable[[], Any], repeats: int = 3) -> float:
    """Least CPU seconds of a call: what it takes where nobody interferes."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("overhead", OVERHEADS)
@pytest.mark.parametrize("num_stages", NUM_STAGES)
@pytest.mark.parametrize("seq_len", SEQ_LENS)
def bench_slice_tokens(benchmark, seq_len, num_stages, overhead):
    cost = surface(seq_len, overhead)
    found = slice_tokens(cost, seq_len, num_stages)
    for count in (1, 4, 16, 64, 256):
        bounds = uniform_slices(seq_len, count, granularity=8)
        priced = [float(cost(b - a, a)) for a, b in itertools.pairwise(bounds)]
        assert found.total_s <= makespan_s(priced, num_stages) * (1 + 1e-12)
    benchmark(slice_tokens, cost, seq_len, num_stages)
    benchmark.extra_info["num_slices"] = found.num_slices


@pytest.mark.parametrize("num_slices", [4, 16, 64])
def bench_slice_tokens_into_a_number(benchmark, num_slices):
    found = slice_tokens(surface(32768, 0.0), 32768, 8, num_slices=num_slices)
    assert found.num_slices == num_slices
    benchmark(slice_tokens, surface(32768, 0.0), 32768, 8, num_slices=num_slices)


@pytest.mark.parametrize("num_rows", [2, 16, 32])
def bench_slice_batch(benchmark, num_rows):
    cost = flop_cost(5120, flops_per_s=5e14, fixed_s=1e-3)
    found = slice_batch(cost, 2048, num_rows, 16)
    assert sum(group.num_rows for group in found.groups) == num_rows
    benchmark(slice_batch, cost, 2048, num_rows, 16)


@pytest.mark.parametrize(("num_layers", "num_stages"), [(32, 8), (96, 48), (128, 16)])
def bench_partition_layers(benchmark, num_layers, num_stages):
    found = partition_layers([1.0] * num_layers, num_stages, first_cost=0.2, last_cost=2.5)
    assert sum(found.num_layers) == num_layers
    benchmark(partition_layers, [1.0] * num_layers, num_stages, first_cost=0.2, last_cost=2.5)
