"""Several batches under way at a time: the same answers, whatever happens in the meantime."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sched import Batch
from recipes.serve.model_runner import RunnerLost, StepResult
from recipes.serve.outputs import RequestOutput
from recipes.serve.sampler import Drawn
from tests.serve.churn import churn
from tests.serve.models import EOS, tiny_decoder, tiny_engine
from tests.serve.oracle import greedy
from tests.serve.staged import staged_engine
from tests.serve.test_engine import assert_clean, collect, job, run


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 4]))
def test_requests_under_churn_equal_one_at_a_time_runs(seed: int, depth: int) -> None:
    engine, runner = staged_engine(depth)
    churn(engine, tiny_decoder(), seed, count=14, doomed=4)
    assert runner.most_out == depth


def test_the_pool_is_too_small_and_prefixes_are_found() -> None:
    """What the property above does not tell of: blocks are taken back from who is under way."""
    engine, _ = staged_engine(2)
    assert churn(engine, tiny_decoder(), seed=7, count=40, doomed=10) > 4
    stats = engine.stats()
    assert stats.num_preemptions > 5
    assert stats.prefix_hits > 30
    assert engine.scheduler.counters.num_stale_entries > 3


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([2, 4]))
def test_a_step_that_fails_takes_those_after_it_with_it(seed: int, depth: int) -> None:
    """Each of those is computed on what the failed one did not write, and is not believed."""
    engine, runner = staged_engine(depth)
    runner.breaks = lambda batch: batch.step % 11 == 5
    churn(engine, tiny_decoder(), seed, count=14, doomed=3)
    assert engine.stats().num_failed_steps > 0


def test_draws_reports_and_prompt_scores_are_those_of_one_batch_at_a_time() -> None:
    prompts = [[5, 6, 7, 8, 9 + at, *range(40)] for at in range(5)]
    asks = [
        {"temperature": 1.0, "top_p": 0.9, "n": 2, "logprobs": 3},
        {"temperature": 0.7, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"prompt_logprobs": 2, "logprobs": 0},
        {"presence_penalty": 1.0, "min_tokens": 6, "logit_bias": {EOS: 20.0}},
        {"stop": ("a", "e"), "max_tokens": 20},
    ]
    jobs = [
        job(f"s{at}", prompt, seed=at, **({"max_tokens": 10} | ask))
        for at, (prompt, ask) in enumerate(zip(prompts, asks, strict=True))
    ]
    engine, _ = staged_engine(3, num_blocks=200)
    for ours, theirs in zip(run(engine, *jobs), run(tiny_engine(), *jobs), strict=True):
        for mine, alone in zip(ours.completions, theirs.completions, strict=True):
            assert (mine.token_ids, mine.text) == (alone.token_ids, alone.text)
            assert mine.finish_reason == alone.finish_reason
        assert scored(ours) == scored(theirs)
    assert_clean(engine)


def scored(answer: RequestOutput) -> list[int | None] | None:
    scores = answer.prompt_logprobs
    return None if scores is None else [score and score.token_id for score in scores]


def test_who_is_cancelled_under_way_leaves_nothing_and_its_name_is_free() -> None:
    engine, runner = staged_engine(2)
    decoder = tiny_decoder()
    for at in range(4):
        engine.add(job(f"r{at}", [9 + at] * 30, max_tokens=6))
    engine.step()
    assert engine.scheduler.num_in_flight == 1
    for at in range(4):
        assert engine.cancel(f"r{at}")
    assert engine.manager.num_free_blocks == engine.manager.num_usable_blocks
    assert engine.has_work(), "a batch is under way"
    again = [job(f"r{at}", [50 + at] * 9, max_tokens=6) for at in range(4)]
    for one in again:
        engine.add(one)
    answers = collect(engine, again)
    for one in again:
        assert answers[one.request_id].token_ids == greedy(
            decoder, tuple(one.prompt_tokens), 6, EOS
        )
    assert_clean(engine)
    assert runner.most_out == 2


def test_an_error_under_way_is_not_for_who_has_the_name_next(monkeypatch) -> None:
    """The draw and the scores of a cancelled request fail after its name was taken anew."""
    engine, runner = staged_engine(2, num_blocks=200)
    engine.add(job("a", [9] * 40, max_tokens=6, prompt_logprobs=1))
    engine.step()  # the second chunk, which draws, is under way
    assert engine.scheduler.num_in_flight == 1
    assert engine.cancel("a")
    again = job("a", [50] * 9, max_tokens=6)
    engine.add(again)
    collect_one = runner.collect

    def broken() -> StepResult:
        monkeypatch.setattr(runner, "collect", collect_one)
        result = collect_one()
        assert len(result.drawn) == len(result.scores) == 1
        return StepResult([Drawn(0, error="broken")], ["broken"])

    monkeypatch.setattr(runner, "collect", broken)
    answer = collect(engine, [again])["a"]
    assert answer.completions[0].error is None
    assert answer.token_ids == greedy(tiny_decoder(), tuple(again.prompt_tokens), 6, EOS)
    assert_clean(engine)


def test_everything_is_given_up_while_batches_are_under_way() -> None:
    engine, _ = staged_engine(3)
    for at in range(6):
        engine.add(job(f"r{at}", [9 + at] * 20, max_tokens=6))
    engine.step()
    assert engine.scheduler.num_in_flight == 2
    deltas = engine.abort_all("enough")
    assert [delta.error for delta in deltas] == ["enough"] * 6
    assert not engine.has_work()
    (answer,) = run(engine, job("after", [1, 2, 3], max_tokens=4))
    assert answer.token_ids == greedy(tiny_decoder(), (1, 2, 3), 4, EOS)
    assert_clean(engine)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_batch_that_cannot_be_sent_leaves_those_before_it(depth: int) -> None:
    engine, runner = staged_engine(depth)
    submit, told = runner.submit, []

    def broken(batch: Batch, draws: list, prompts: list) -> None:
        told.append(batch.step)
        if len(told) % 16 == 2:
            raise KeyError("unforeseen")
        submit(batch, draws, prompts)

    runner.submit = broken  # type: ignore[method-assign]
    churn(engine, tiny_decoder(), seed=3, count=10, doomed=2)
    assert engine.stats().num_failed_steps > 1


def test_who_ends_in_the_step_that_loses_the_runner_is_told_so_too() -> None:
    engine, runner = staged_engine(6, num_blocks=200)
    submit, collect_one = runner.submit, runner.collect
    for at in range(10):
        engine.add(job(f"r{at}", [5 + at] * 10, max_tokens=24, ignore_eos=True))
    for _ in range(14):
        engine.step()

    def broken(batch: Batch, draws: list, prompts: list) -> None:
        if any(entry.sequence.request.request_id == "bad" for entry in batch.entries):
            raise KeyError("unforeseen")
        submit(batch, draws, prompts)

    def lost() -> StepResult:
        if engine.scheduler.sequences("bad"):
            return collect_one()
        raise RunnerLost("gone")

    runner.submit, runner.collect = broken, lost  # type: ignore[method-assign]
    engine.add(job("bad", [7] * 10, max_tokens=4))
    ends: list[str] = []
    while engine.has_work():
        ends += [delta.request_id for delta in engine.step() if delta.finish_reason is not None]
    assert sorted(ends) == sorted(["bad", *(f"r{at}" for at in range(10))])
