"""Ranks in stages with a batch each: the answers of one process, and stages at work together."""

import dataclasses
import itertools
import os
import signal
import time
from collections import defaultdict
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.model import Decoder, init_weights, save_model
from recipes.model.part import DecoderPart
from recipes.serve.parallel import ParallelRunner
from recipes.serve.parallel.stage_runner import StageRunner
from tests.serve.churn import churn
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy
from tests.serve.ranks import parallel_engine
from tests.serve.test_engine import assert_clean, collect, job, run

DECODER = Decoder(dataclasses.replace(tiny_decoder().config, num_layers=4))
init_weights(DECODER, torch.Generator().manual_seed(3), std=0.3)
DECODER.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("four_layers")
    save_model(DECODER, path, tiny_tokenizer())
    return path


@pytest.mark.parametrize(("tp", "pp", "batches"), [(1, 2, None), (1, 4, None), (2, 2, 3)])
def test_requests_under_churn_equal_one_at_a_time_runs(folder, tp, pp, batches) -> None:
    """A pool too small for them, small steps, cancellation: all while batches are under way."""
    small = {"token_budget": 24, "max_num_seqs": 12, "pp_batches": batches}
    engine, forks = parallel_engine(folder, tp, pp, blocks=72, **small)
    out = []
    engine.on_batch = lambda batch: out.append(engine.scheduler.num_in_flight)
    try:
        gone = churn(engine, DECODER, seed=5, count=32, doomed=8)
        stats = engine.stats()
    finally:
        engine.close()
    assert gone > 2
    assert max(out) == (batches or pp)
    assert stats.num_preemptions > 3
    assert stats.prefix_hits > 30
    assert stats.num_failed_steps == 0
    assert engine.scheduler.counters.num_stale_entries > 0
    assert not forks.alive()


def test_a_rank_that_dies_ends_what_is_under_way_and_the_next_ones_get_new_ranks(folder) -> None:
    engine, forks = parallel_engine(folder, 1, 4)
    try:
        wanted = [job(f"r{at}", [20 + at, 3, 4], max_tokens=40, ignore_eos=True) for at in range(8)]
        for one in wanted:
            engine.add(one)
        for _ in range(12):
            engine.step()
        assert engine.scheduler.num_in_flight == 3
        os.kill(forks.ranks[2], signal.SIGKILL)
        for answer in collect(engine, wanted).values():
            assert "rank 2 (stage 2 of 4" in (answer.completions[0].error or "")
        assert engine.stats().num_failed_steps == 1
        (answer,) = run(engine, job("after", [1, 2, 3], max_tokens=8))
        assert answer.token_ids == greedy(DECODER, (1, 2, 3), 8, EOS)
        assert_clean(engine)
    finally:
        engine.close()
    assert not forks.alive()


def test_batches_are_sent_one_by_one_and_waited_for_beside_something_else(folder) -> None:
    engine, forks = parallel_engine(folder, 1, 2)
    runner = engine.runner
    assert isinstance(runner, ParallelRunner)
    asked, wake = os.pipe()
    try:
        assert engine.begin() == engine.finish() == []
        wanted = [job(f"r{at}", [20 + at, 3, 4], max_tokens=6, ignore_eos=True) for at in range(3)]
        for one in wanted[:2]:
            engine.add(one)
        assert engine.begin(1) == []
        assert engine.begin(1) == []
        assert engine.num_out == 1, "both prompts are under way: nothing is left to send"
        assert runner.wait(60, ())
        assert len(engine.finish()) == 2
        for rank in forks.ranks:
            os.kill(rank, signal.SIGSTOP)
        engine.begin()
        engine.begin()
        assert engine.num_out == 2, "a sequence in each"
        engine.add(wanted[2])
        assert not runner.wait(0.0, ())
        os.write(wake, b"x")
        assert not runner.wait(60, [asked])
        for rank in forks.ranks:
            os.kill(rank, signal.SIGCONT)
        found = collect(engine, wanted)
    finally:
        for end in (asked, wake):
            os.close(end)
        engine.close()
    assert found["r2"].token_ids == greedy(DECODER, (22, 3, 4), 6, None)


def test_what_is_given_up_while_under_way_is_not_taken_for_what_comes_after(folder) -> None:
    engine, forks = parallel_engine(folder, 1, 2)
    try:
        for at in range(4):
            engine.add(job(f"r{at}", [20 + at, 3], max_tokens=9, ignore_eos=True))
        for _ in range(3):
            engine.step()
        assert engine.num_out == 1
        assert len(engine.abort_all("enough")) == 4
        (answer,) = run(engine, job("after", [1, 2, 3], max_tokens=8))
        assert answer.token_ids == greedy(DECODER, (1, 2, 3), 8, EOS)
        assert_clean(engine)
    finally:
        engine.close()
    assert not forks.alive()


def test_a_result_that_is_there_counts_however_late_it_is_asked_for(folder) -> None:
    engine, forks = parallel_engine(folder, 1, 2, step_timeout=5.0)
    runner = engine.runner
    assert isinstance(runner, ParallelRunner)
    try:
        engine.add(job("r", [1, 2, 3], max_tokens=1, ignore_eos=True))
        engine.begin()
        assert runner._group is not None
        assert connection.wait(list(runner._group._lines.values()), 60)  # nobody reads it yet
        runner._first_s -= 6.0  # as if the caller had been stopped meanwhile
        (delta,) = engine.finish()
    finally:
        engine.close()
    assert delta.error is None
    assert not forks.alive()


# --- at work together ---------------------------------------------------------------------------

STAGE_S = 0.02


def slow_stages(monkeypatch, folder: Path) -> None:
    """Every stage takes its time over a step, but no processor, and notes from when to when."""
    forward, run_step = DecoderPart.forward, StageRunner.run
    now: dict[str, Any] = {}

    def noted(self: StageRunner, step: Any) -> Any:
        now.update(rank=self.rank, step=step.number)
        return run_step(self, step)

    def slow(self: DecoderPart, *args: Any) -> Any:
        began_s = time.monotonic()
        time.sleep(STAGE_S)
        found = forward(self, *args)
        with (folder / f"busy{now['rank']}").open("a") as file:
            file.write(f"{now['step']} {began_s} {time.monotonic()}\n")
        return found

    monkeypatch.setattr(StageRunner, "run", noted)
    monkeypatch.setattr(DecoderPart, "forward", slow)


def busy_intervals(folder: Path, pp: int) -> dict[int, list[tuple[float, float]]]:
    """By step, when each of its stages was at it."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for stage in range(pp):
        for line in (folder / f"busy{stage}").read_text().splitlines():
            step, began_s, ended_s = line.split()
            found[int(step)].append((float(began_s), float(ended_s)))
    return found


@pytest.mark.parametrize(("pp", "batches"), [(2, 1), (2, 2), (4, 4)])
def test_stages_are_at_work_on_different_steps_at_a_time(
    folder, tmp_path, monkeypatch, pp, batches
) -> None:
    slow_stages(monkeypatch, tmp_path)
    engine, _ = parallel_engine(folder, 1, pp, pp_batches=batches)
    try:
        jobs = [job(f"r{at}", [20 + at, 3], max_tokens=8, ignore_eos=True) for at in range(8)]
        run(engine, *jobs)
    finally:
        engine.close()
    steps = busy_intervals(tmp_path, pp)
    assert all(len(stages) == pp for stages in steps.values())
    for stages in steps.values():  # a step goes from stage to stage
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(stages))
    middles = [(began + ended) / 2 for stages in steps.values() for began, ended in stages]
    at_work = [
        sum(any(a <= moment < b for a, b in stages) for stages in steps.values())
        for moment in middles
    ]
    assert max(at_work) == batches
    if batches > 1:  # and not now and then: others may hold a process up, but not for long
        assert sum(count > 1 for count in at_work) > len(at_work) / 3
