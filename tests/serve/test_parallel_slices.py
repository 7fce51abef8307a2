"""Steps cut into runs for a pipeline: nothing is lost, and the cut is the best there is."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline.slicing import makespan_s
from recipes.serve import EngineConfig
from recipes.serve.parallel.piece_cost import PieceCost, PieceSample, fit_piece_cost
from recipes.serve.parallel.probe import REPEATS, probe
from recipes.serve.parallel.step_slices import StepSlices
from recipes.serve.plain_batch import PlainBatch

SIZE = 4
CPU = torch.device("cpu")


def draw_batch(rng: random.Random, max_entries: int = 6, max_count: int = 9) -> PlainBatch:
    count = rng.randint(1, max_entries)
    starts = np.array([rng.choice([0, 3, 17, 40]) for _ in range(count)], np.int64)
    counts = np.array([rng.choice([1, 1, rng.randint(1, max_count)]) for _ in range(count)])
    blocks = -(-int((starts + counts).max()) // SIZE)
    table = np.arange(1, count * blocks + 1, dtype=np.int32).reshape(count, blocks)
    sampled = np.array([rng.random() < 0.7 for _ in range(count)])
    tokens = np.array([rng.randrange(99) for _ in range(int(counts.sum()))], np.int64)
    return PlainBatch(tokens, starts, counts.astype(np.int64), sampled, table)


def draw_bounds(rng: random.Random, num_tokens: int) -> list[int]:
    inner = rng.sample(range(1, num_tokens), rng.randint(0, num_tokens - 1))
    return [0, *sorted(inner), num_tokens]


@given(st.integers(0, 10_000))
def test_runs_of_a_batch_are_the_batch(seed):
    """Every token once, at its position and slot, seeing what it saw; every sampled row once."""
    rng = random.Random(seed)
    batch = draw_batch(rng)
    bounds = draw_bounds(rng, batch.num_tokens)
    whole = batch.tensors(SIZE, CPU)
    parts = [part.tensors(SIZE, CPU) for part in batch.cut(bounds)]
    for name in ("token_ids", "positions", "slots"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
    last = [part.last + first for part, first in zip(parts, bounds, strict=False)]
    assert torch.equal(torch.cat(last), whole.last)
    for part in parts:
        ends = part.cu_seqlens_q[1:].long() - 1
        assert torch.equal(part.seq_lens.long(), part.positions[ends] + 1)
        for row, end in enumerate(ends.tolist()):  # the row's own pages: its last slot is there
            position = int(part.positions[end])
            block = int(part.block_table[row, position // SIZE])
            assert int(part.slots[end]) == block * SIZE + position % SIZE


@given(st.integers(0, 10_000))
def test_the_cut_finishes_soonest(seed):
    rng = random.Random(seed)
    batch = draw_batch(rng, max_entries=4, max_count=4)
    cost = PieceCost(
        fixed=rng.choice([0, 0.5, 3.0]),
        per_token=rng.random(),
        per_floor=rng.choice([0, 1.0]),
        floor=4,
        per_seen=rng.choice([0, 0.05]),
    )
    stages = rng.randint(2, 4)
    over = cost.over(batch)

    def total(bounds) -> float:
        at = np.array(bounds)
        return makespan_s(over(np.diff(at), at[:-1]).tolist(), stages)

    found = StepSlices(stages, cost).bounds(batch)
    count = batch.num_tokens
    best = min(
        total([0, *inner, count])
        for size in range(min(count, 9))
        for inner in itertools.combinations(range(1, count), size)
    )
    assert total(found) <= best * (1 + 1e-4) + 1e-12
    seen = float((batch.positions + 1).sum())
    assert total([0, count]) == pytest.approx(stages * cost(count, seen))


def test_steps_that_look_alike_are_cut_once(monkeypatch):
    slices = StepSlices(2, PieceCost(per_token=1.0))
    batch = draw_batch(random.Random(0))
    first = slices.bounds(batch)
    monkeypatch.setattr(StepSlices, "_cut", None)
    assert slices.bounds(batch) == first
    assert StepSlices(2).bounds(batch) == [0, batch.num_tokens]
    assert len(StepSlices(2, num_slices=2).bounds(batch)) == 3
    assert len(StepSlices(2, num_slices=99).bounds(batch)) == batch.num_tokens + 1


def test_a_probe_finds_the_cost_of_the_slowest_stage():
    """Three stages, one of them twice as slow, and what a step costs once on top."""
    cost = PieceCost(fixed=2e-3, per_token=1e-5, per_floor=1e-4, floor=16, per_seen=2e-8)
    now = 0.0

    def run(batch: PlainBatch, bounds: list[int]) -> None:
        nonlocal now
        at = np.array(bounds)
        slow = cost.over(batch)(np.diff(at), at[:-1])
        now += 0.01 + float(slow.sum() + slow.max())  # two stages at half of it fill and drain

    sizes = {"num_stages": 3, "max_tokens": 512, "max_len": 4096, "block_size": SIZE}
    found = probe(run, **sizes, clock=lambda: now)
    assert found is not None
    for length, seen in ((1, 1), (40, 9000), (200, 4000), (256, 200_000)):
        assert float(found(length, seen)) == pytest.approx(float(cost(length, seen)), rel=1e-6)
    assert REPEATS > 1


SMALL = {"num_stages": 2, "max_tokens": 64, "max_len": 64, "block_size": 4}


def test_a_probe_that_makes_no_sense_leaves_steps_whole():
    assert probe(lambda batch, bounds: None, **SMALL, clock=lambda: 0.0) is None
    with pytest.raises(ValueError, match="at least 3"):
        fit_piece_cost([PieceSample(1, 1, 0.0)] * 5)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_cost_is_used_only_where_cutting_by_it_is_quicker(overlap):
    """Two stages that share one core gain nothing from runs, however cheap these are."""
    now = 0.0

    def run(batch: PlainBatch, bounds: list[int]) -> None:
        nonlocal now
        lengths = np.diff(bounds)
        each = 1e-4 + 1e-3 * lengths
        now += float(each.sum() + (each.max() if overlap else each.sum()))

    found = probe(run, **SMALL, clock=lambda: now)
    assert (found is not None) == overlap


def test_runs_and_batches_need_stages():
    with pytest.raises(ValueError, match="pp_slices: expected None with one stage"):
        EngineConfig(pp_slices=2)
    with pytest.raises(ValueError, match="pp_batches: expected None with one stage"):
        EngineConfig(pp_batches=2)


@given(st.integers(0, 10_000))
def test_beside_other_steps_a_cut_costs_next_to_nothing(seed):
    """Stages that have work without it are not given more of it."""
    rng = random.Random(seed)
    batch = draw_batch(rng, max_entries=8, max_count=40)
    cost = PieceCost(fixed=rng.choice([0, 0.01, 3.0]), per_token=1.0, per_floor=1.0, floor=8)
    slices = StepSlices(2, cost)
    over = cost.over(batch)

    def work(bounds) -> float:
        at = np.array(bounds)
        return float(over(np.diff(at), at[:-1]).sum())

    whole = [0, batch.num_tokens]
    alone, beside = slices.bounds(batch), slices.bounds(batch, alone=False)
    assert beside in (alone, whole)
    assert work(beside) <= 1.05 * work(whole) + 1e-9
    assert (beside == alone) == (work(alone) <= 1.05 * work(whole))
