"""Injected faults: the request at fault ends with an error, all others are token-identical."""

import itertools
import math

import pytest

from recipes.serve import prompt_scores
from recipes.serve.live import Sample
from recipes.serve.runner import Runner
from recipes.serve.step import Step
from recipes.serve.tally import Tally
from tests.serve.models import EOS, tiny_decoder, tiny_engine
from tests.serve.oracle import greedy
from tests.serve.test_engine import assert_clean, collect, job

POISON = 77


def crowd(count: int = 8, poisoned: int | None = None):
    """Different prompts; the poisoned one, if any, holds the token POISON."""
    jobs = []
    for i in range(count):
        prompt = [20 + i, *range(30, 40), 50 + i]
        jobs.append(job(f"r{i}", [POISON, *prompt] if i == poisoned else prompt, max_tokens=10))
    return jobs


def run_crowd(engine, jobs):
    for one in jobs:
        engine.add(one)
    return collect(engine, jobs)


def assert_others_identical(answers, jobs, failed: set[int]) -> None:
    for index, one in enumerate(jobs):
        completion = answers[one.request_id].completions[0]
        if index in failed:
            assert completion.finish_reason == "error", completion
            assert completion.error
        else:
            expected = greedy(tiny_decoder(), tuple(one.prompt_tokens), 10, EOS)
            assert completion.token_ids == expected


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_forward_pass_that_raises_once_is_recomputed(monkeypatch, step):
    calls, original = itertools.count(1), Runner.forward

    def forward(self, batch):
        if next(calls) == step:
            raise RuntimeError("out of memory")
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    engine, jobs = tiny_engine(token_budget=32), crowd()
    assert_others_identical(run_crowd(engine, jobs), jobs, failed=set())
    assert engine.stats().num_failed_steps == 1
    assert_clean(engine)


@pytest.mark.parametrize("part", ["__init__", "outcome"])
def test_a_step_that_raises_around_its_forward_pass_is_recomputed(monkeypatch, part):
    """Not what one request caused, which is contained: our own mistake before or after it."""
    calls, original = itertools.count(1), getattr(Step, part)

    def broken(self, *args):
        if next(calls) == 3:
            raise KeyError("unforeseen")
        return original(self, *args)

    monkeypatch.setattr(Step, part, broken)
    engine, jobs = tiny_engine(token_budget=32), crowd()
    assert_others_identical(run_crowd(engine, jobs), jobs, failed=set())
    assert engine.stats().num_failed_steps == 1
    assert_clean(engine)


def test_a_request_whose_start_raises_is_not_left_in_the_queue(monkeypatch):
    engine, jobs = tiny_engine(), crowd(2)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_detokenizer", broken_detokenizer)
        with pytest.raises(RuntimeError, match="no detokenizer"):
            engine.add(jobs[0])
    assert_clean(engine)
    assert_others_identical(run_crowd(engine, jobs), jobs, failed=set())


def broken_detokenizer(skip):
    raise RuntimeError("no detokenizer")


def test_a_request_that_breaks_every_forward_pass_is_found_and_ended(monkeypatch):
    original = Runner.forward

    def forward(self, batch):
        if any(entry.sequence.tokens[0] == POISON for entry in batch.entries):
            raise RuntimeError("poison")
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    engine, jobs = tiny_engine(), crowd(poisoned=3)
    assert_others_identical(run_crowd(engine, jobs), jobs, failed={3})
    assert_clean(engine)


def test_a_failed_step_leaves_no_findable_blocks_behind(monkeypatch):
    """Its keys and values were never written: a later request must not find them."""
    original = Runner.forward

    def forward(self, batch):
        raise RuntimeError("broken")

    monkeypatch.setattr(Runner, "forward", forward)
    engine, jobs = tiny_engine(), crowd(2)
    answers = run_crowd(engine, jobs)
    assert all(a.completions[0].finish_reason == "error" for a in answers.values())
    monkeypatch.setattr(Runner, "forward", original)
    answers = run_crowd(engine, jobs)
    assert_others_identical(answers, jobs, failed=set())
    assert all(a.num_cached_tokens == 0 for a in list(answers.values())[:1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_of_broken_logits_ends_its_own_request(monkeypatch, value):
    original = Runner.logits

    def forward(self, batch):
        self.poisoned = [
            entry.sequence.tokens[0] == POISON for entry in batch.entries if entry.num_samples
        ]
        return original_forward(self, batch)

    def logits(self, hidden, rows):
        scores = original(self, hidden, rows).clone()
        for row, poisoned in enumerate(self.poisoned):
            if poisoned:
                scores[row] = value
        return scores

    original_forward = Runner.forward
    monkeypatch.setattr(Runner, "forward", forward)
    monkeypatch.setattr(Runner, "logits", logits)
    engine, jobs = tiny_engine(), crowd(poisoned=5)
    assert_others_identical(run_crowd(engine, jobs), jobs, failed={5})
    assert engine.manager.match_prefix(jobs[5].prompt_tokens) == 0
    assert_clean(engine)


def test_an_exception_in_the_text_of_one_request_ends_it_alone(monkeypatch):
    original = Sample.show

    def show(sample, token, reason):
        if sample.state.tokens[0] == POISON and sample.state.num_output == 3:
            raise UnicodeError("poison")
        return original(sample, token, reason)

    monkeypatch.setattr(Sample, "show", show)
    engine, jobs = tiny_engine(), crowd(poisoned=0)
    assert_others_identical(run_crowd(engine, jobs), jobs, failed={0})
    assert_clean(engine)


def test_an_exception_in_one_requests_prompt_scores_ends_it_alone(monkeypatch):
    original = prompt_scores.token_logprobs

    def score(logits, token_ids, num_top):
        if POISON in token_ids:
            raise ValueError("poison")
        return original(logits, token_ids, num_top)

    monkeypatch.setattr(prompt_scores, "token_logprobs", score)
    engine = tiny_engine()
    jobs = [
        job(f"r{i}", [3, p, 4], max_tokens=10, prompt_logprobs=0)
        for i, p in enumerate((9, POISON, 8))
    ]
    answers = run_crowd(engine, jobs)
    assert [a.completions[0].finish_reason == "error" for a in answers.values()] == [
        False,
        True,
        False,
    ]
    assert_clean(engine)


def test_after_an_error_of_its_own_the_engine_starts_over():
    engine, jobs = tiny_engine(), crowd()
    for one in jobs:
        engine.add(one)
    engine.step()
    deltas = engine.abort_all("gone")
    assert sorted(d.request_id for d in deltas) == sorted(j.request_id for j in jobs)
    assert all(d.finish_reason == "error" for d in deltas)
    assert_others_identical(run_crowd(engine, jobs), jobs, failed=set())


def test_an_error_of_its_own_in_the_middle_of_a_step_leaves_nobody_without_an_end(monkeypatch):
    """Half of the requests have ended in that step already, and nobody has been told."""
    engine, calls, original = tiny_engine(), itertools.count(1), Tally.observe

    def observe(self, *args):
        if next(calls) == 4:
            raise AssertionError("a mistake in the engine")
        original(self, *args)

    monkeypatch.setattr(Tally, "observe", observe)
    jobs = [job(f"r{i}", [20 + i, 3, 4], max_tokens=1) for i in range(6)]
    for one in jobs:
        engine.add(one)
    with pytest.raises(AssertionError, match="a mistake"):
        engine.step()
    ended = engine.abort_all("internal engine error")
    assert [delta.request_id for delta in ended] == [one.request_id for one in jobs]
    assert [delta.finish_reason for delta in ended] == ["length"] * 4 + ["error"] * 2
    assert_clean(engine)
