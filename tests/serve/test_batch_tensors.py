"""Rows updated where they changed give the same tensors as rows built afresh."""

import random
import types

import pytest
import torch

from blocks.kv import BlockManager
from blocks.sched import Batch, Entry, Request, Scheduler
from recipes.serve.batch_tensors import BatchTensors

SIZE = 4


def make(manager: BlockManager, num_rows: int = 6) -> BatchTensors:
    return BatchTensors(
        manager.table,
        num_rows=num_rows,
        block_size=SIZE,
        max_blocks=16,
        device=torch.device("cpu"),
    )


def assert_right(batch: Batch, manager: BlockManager, step) -> None:
    """Every tensor says of every entry what the scheduler and the tables say."""
    at = 0
    for row, entry in enumerate(batch.entries):
        table = manager.table(entry.sequence.sequence_id)
        stop = entry.start + entry.num_tokens
        part = slice(at, at + entry.num_tokens)
        assert step.token_ids[part].tolist() == entry.sequence.tokens[entry.start : stop]
        assert step.positions[part].tolist() == list(range(entry.start, stop))
        assert step.slots[part].tolist() == table.slots(entry.start, stop)
        used = -(-stop // SIZE)
        assert step.block_table[row, :used].tolist() == table.block_ids[:used]
        assert step.seq_lens[row] == stop
        at += entry.num_tokens
        assert step.cu_seqlens_q[row + 1] == at
    sampled = [i for i, e in enumerate(batch.entries) if e.num_samples]
    assert step.last.tolist() == [int(step.cu_seqlens_q[i + 1]) - 1 for i in sampled]


@pytest.mark.parametrize("seed", range(6))
def test_incremental_rows_follow_growth_forks_preemption_and_failed_steps(seed):
    rng = random.Random(seed)
    manager = BlockManager(18, SIZE)
    scheduler = Scheduler(manager, token_budget=12, max_num_seqs=6, max_model_len=60)
    tensors = make(manager)
    for step in range(150):
        if rng.random() < 0.3:
            prompt = [rng.randrange(3) for _ in range(rng.randint(1, 20))]
            n = rng.choice([1, 1, 3])
            request = Request(
                request_id=f"{step}", prompt_tokens=prompt, max_tokens=20, num_samples=n
            )
            scheduler.add(request)
        batch = scheduler.schedule()
        manager.take_copies()
        if not batch.entries:
            continue
        assert_right(batch, manager, tensors.build(batch))
        if rng.random() < 0.1:
            scheduler.fail(batch)
            continue
        drawn = [[rng.randrange(9) for _ in range(e.num_samples)] for e in batch.entries]
        scheduler.update(batch, drawn)
    assert scheduler.counters.num_preemptions > 0


def test_a_batch_beyond_its_rows_is_refused():
    manager = BlockManager(10, SIZE)
    entries = []
    for i in range(3):
        manager.allocate(i, [1], 1)
        sequence = types.SimpleNamespace(sequence_id=i, tokens=[1])
        entries.append(Entry(sequence, 0, 1, 1, 0))  # type: ignore
    with pytest.raises(ValueError, match="at most 2 sequences"):
        make(manager, num_rows=2).build(Batch(1, entries, 3))
