"""A model cut over processes gives the tokens of one process, whatever else it is doing."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from recipes.model import save_model
from recipes.serve import Engine, EngineConfig, SamplingParams
from recipes.serve.llm import LLM
from recipes.serve.loading import load
from recipes.serve.parallel import Layout
from tests.serve.churn import churn
from tests.serve.models import EOS, tiny_decoder, tiny_engine, tiny_tokenizer
from tests.serve.oracle import greedy
from tests.serve.ranks import Pids, parallel_engine
from tests.serve.test_engine import assert_clean, job, random_prompts, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_model(tiny_decoder(), path, tiny_tokenizer())
    return path


@pytest.fixture(
    scope="module", params=[(2, 1), (1, 2), (2, 2)], ids=lambda p: "x".join(map(str, p))
)
def engine(request, folder) -> Iterator[Engine]:
    """Few blocks, so that sequences are preempted; small steps, so that prompts are chunked."""
    small: dict[str, Any] = {"blocks": 36, "token_budget": 24, "max_num_seqs": 12}
    if request.param[1] > 1:  # in runs by number, and by times that are measured at the start
        small["pp_slices"] = 3 if request.param == (2, 2) else None
    made, forks = parallel_engine(folder, *request.param, **small)
    yield made
    made.close()
    assert not forks.alive()


def test_requests_under_churn_equal_one_at_a_time_runs(engine):
    """Random arrival, a pool too small for them, shared prefixes, n > 1 and cancellation."""
    assert churn(engine, tiny_decoder(), seed=7, count=32, doomed=8) > 1
    stats = engine.stats()
    assert stats.num_preemptions > 5
    assert stats.prefix_hits > 30
    assert stats.num_failed_steps == 0


ASKS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "n": 2, "logprobs": 3},
    {"temperature": 0.7, "top_k": 20, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"presence_penalty": 1.0, "min_tokens": 6, "logit_bias": {EOS: 20.0, 7: 3.0}},
    {"prompt_logprobs": 2, "logprobs": 0},
)


def test_draws_reports_and_prompt_scores_are_those_of_one_process(engine):
    rng = random.Random(3)
    prompts = random_prompts(12, rng, tiny_decoder().config.vocab_size)
    prompts[3] = [rng.randrange(1, 300) for _ in range(100)]  # scored in several chunks
    jobs = [
        job(f"s{i}", prompt, seed=i, max_tokens=10, **ASKS[i % len(ASKS)])
        for i, prompt in enumerate(prompts)
    ]
    for one, found, expected in zip(
        jobs, run(engine, *jobs), run(tiny_engine(), *jobs), strict=True
    ):
        for ours, theirs in zip(found.completions, expected.completions, strict=True):
            assert ours.error is None
            assert ours.token_ids == theirs.token_ids, one
            assert_same_reports(ours.logprobs, theirs.logprobs)
        assert_same_reports(found.prompt_logprobs, expected.prompt_logprobs)
    assert_clean(engine)


def assert_same_reports(ours: Any, theirs: Any) -> None:
    if ours is None or theirs is None:
        assert ours is theirs
        return
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert a.token_id == b.token_id
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert [t for t, _ in a.top] == [t for t, _ in b.top]


def test_an_offline_call_over_ranks_explains_itself_and_leaves_nothing_behind(folder):
    forks = Pids()
    loaded = load(folder, EngineConfig(kv_bytes=1 << 20, tp=2, kv_dtype="int8"), start=forks)
    with LLM(loaded=loaded) as llm:
        text = loaded.explain()
        assert "2 ranks: 1 stages of 2 layers" in text
        weights = sum(p.numel() * 4 for p in tiny_decoder().parameters())
        norms = 5 * 32 * 4  # are held twice
        assert loaded.weight_bytes == weights + norms
        params = SamplingParams(temperature=0, max_tokens=8)
        answers = llm.generate([[1, 2, 3], [4, 5]], params)
    with LLM(folder, kv_bytes=1 << 20, kv_dtype="int8") as alone:
        expected = alone.generate([[1, 2, 3], [4, 5]], params)
    assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
    assert len(forks.ranks) == 2
    assert not forks.alive()
    with pytest.raises(ValueError, match="runner: expected one that is not closed"):
        llm.engine.runner.submit(None, [], [])  # type: ignore


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), r"tp: expected a divisor of num_heads \(4\), got 3"),
        (Layout(pp=3), r"pp: expected at most num_layers \(2\), a layer a stage, got 3"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused(layout, message, folder):
    with pytest.raises(ValueError, match=message):
        LLM(folder, tp=layout.tp, pp=layout.pp)


def test_more_ranks_than_key_heads_hold_copies(folder):
    """Four ranks, two key and value heads: every head is held twice."""
    made, _ = parallel_engine(folder, 4, 1)
    try:
        (answer,) = run(made, job("a", [5, 6, 7], max_tokens=6))
        assert answer.token_ids == greedy(tiny_decoder(), (5, 6, 7), 6, EOS)
        assert "4 ranks with 1, 1, 1, 1 of 2 key and value heads" in made.runner.explain()
    finally:
        made.close()
