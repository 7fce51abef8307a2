"""Ranks that die, fail or hang: their requests end with the reason, and the engine goes on."""

import os
import signal
import time
from multiprocessing import Pipe, get_context

import pytest

from recipes.model import save_model
from recipes.serve.model_runner import RunnerLost
from recipes.serve.parallel.stage_runner import StageRunner
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy
from tests.serve.ranks import is_alive, parallel_engine, wait_for
from tests.serve.test_engine import assert_clean, collect, job

POISON = 77


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_model(tiny_decoder(), path, tiny_tokenizer())
    return path


def jobs(count: int = 4, first: int = 20, name: str = "r"):
    return [job(f"{name}{i}", [first + i, 3, 4, 5], max_tokens=12) for i in range(count)]


def start_jobs(engine, wanted):
    for one in wanted:
        engine.add(one)
    return {one.request_id: one for one in wanted}


def assert_all_failed(answers, *words: str) -> None:
    for answer in answers.values():
        (completion,) = answer.completions
        assert completion.finish_reason == "error"
        for word in words:
            assert word in (completion.error or ""), completion.error


def assert_works(engine) -> None:
    wanted = jobs(3, first=40, name="after")
    start_jobs(engine, wanted)
    for one, answer in zip(wanted, collect(engine, wanted).values(), strict=True):
        expected = greedy(tiny_decoder(), tuple(one.prompt_tokens), 12, EOS)
        assert answer.completions[0].token_ids == expected
    assert_clean(engine)


@pytest.mark.parametrize(
    ("tp", "pp", "victim"),
    [
        (2, 1, 1),
        (2, 2, 3),
        pytest.param(2, 1, 0, marks=pytest.mark.nightly),
        pytest.param(1, 2, 0, marks=pytest.mark.nightly),
        pytest.param(4, 1, 2, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_rank_ends_its_requests_and_the_next_ones_get_new_ranks(folder, tp, pp, victim):
    engine, forks = parallel_engine(folder, tp, pp)
    try:
        first, wanted = forks.ranks, jobs()
        start_jobs(engine, wanted)
        engine.step()
        engine.step()
        os.kill(first[victim], signal.SIGKILL)
        started = time.monotonic()
        answers = collect(engine, wanted)
        assert time.monotonic() - started < 20
        assert_all_failed(answers, f"rank {victim} (stage", "was killed by SIGKILL")
        assert engine.stats().num_failed_steps == 1
        wait_for(lambda: not any(map(is_alive, first)))
        assert_works(engine)
        assert forks.ranks != first
    finally:
        engine.close()
    assert not forks.alive()


def test_a_rank_that_dies_while_idle_fails_nobody(folder):
    engine, forks = parallel_engine(folder, 2, 1)
    try:
        assert_works(engine)
        os.kill(forks.ranks[1], signal.SIGKILL)
        wait_for(lambda: not is_alive(forks.ranks[1]))
        wait_for(engine.runner.is_lost)
        assert_works(engine)
        assert engine.stats().num_failed_steps == 0
    finally:
        engine.close()


def test_a_rank_that_raises_is_named_with_its_traceback(folder, monkeypatch, caplog):
    original = StageRunner.run

    def poisoned(self, step):
        if self.rank == 1 and POISON in step.batch().token_ids:
            raise KeyError("bad token")
        return original(self, step)

    monkeypatch.setattr(StageRunner, "run", poisoned)
    engine, _ = parallel_engine(folder, 1, 2)
    try:
        wanted = [*jobs(2), job("bad", [POISON, 3], max_tokens=4)]
        start_jobs(engine, wanted)
        answers = collect(engine, wanted)
        assert_all_failed(answers, "rank 1 (stage 1 of 2", "KeyError: 'bad token'")
        assert "in poisoned" in caplog.text, "the log has the traceback"
        assert "in poisoned" not in (answers["bad"].completions[0].error or "")
        assert_works(engine)
    finally:
        engine.close()


def test_a_rank_that_hangs_is_given_up_and_where_it_hangs_is_told(folder, monkeypatch, caplog):
    original = StageRunner.run

    def sleepy(self, step):
        if self.rank == 0 and POISON in step.batch().token_ids:
            time.sleep(600)
        return original(self, step)

    monkeypatch.setattr(StageRunner, "run", sleepy)
    engine, forks = parallel_engine(folder, 2, 1, step_timeout=1.0)
    try:
        wanted = [job("bad", [POISON, 3], max_tokens=4)]
        start_jobs(engine, wanted)
        assert_all_failed(collect(engine, wanted), "no step finished within 1 s")
        assert "in sleepy" in caplog.text
        assert_works(engine)
    finally:
        engine.close()
    assert not forks.alive()


def test_a_rank_that_is_stopped_is_named(folder):
    engine, forks = parallel_engine(folder, 2, 1, step_timeout=1.0)
    try:
        os.kill(forks.ranks[1], signal.SIGSTOP)
        wanted = jobs(1)
        start_jobs(engine, wanted)
        assert_all_failed(collect(engine, wanted), "rank 1 (stage 0", "does not answer")
    finally:
        engine.close()
    assert not forks.alive()


def test_ranks_that_cannot_start_say_why(folder, monkeypatch):
    def broken(self, spec, groups):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "__init__", broken)
        with pytest.raises(RunnerLost, match=r"rank . \(stage 0 .*failed: MemoryError: no room"):
            parallel_engine(folder, 2, 1)


def test_ranks_do_not_outlive_their_engine(folder):
    reader, writer = Pipe(duplex=False)

    def be_engine() -> None:
        _, forks = parallel_engine(folder, 2, 1)
        writer.send(forks.ranks)
        time.sleep(600)

    process = get_context("fork").Process(target=be_engine)
    process.start()
    assert reader.poll(60)
    ranks = reader.recv()
    assert all(map(is_alive, ranks))
    process.kill()
    process.join()
    wait_for(lambda: not any(map(is_alive, ranks)))


def test_ranks_that_cannot_start_again_fail_only_who_asks(folder, monkeypatch):
    """The engine stays up, says why to everybody who asks, and works once starting works."""
    engine, forks = parallel_engine(folder, 2, 1)
    original = StageRunner.__init__

    def broken(self, spec, groups):
        raise MemoryError("no room")

    try:
        os.kill(forks.ranks[0], signal.SIGKILL)
        wait_for(engine.runner.is_lost)
        monkeypatch.setattr(StageRunner, "__init__", broken)
        for attempt in range(2):
            wanted = jobs(2, name=f"try{attempt}-")
            start_jobs(engine, wanted)
            assert_all_failed(collect(engine, wanted), "MemoryError: no room")
        monkeypatch.setattr(StageRunner, "__init__", original)
        assert_works(engine)
    finally:
        engine.close()
    assert not forks.alive()
