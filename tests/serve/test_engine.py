"""The engine's output never depends on what else it is doing."""

import collections
import random
from typing import Any

import pytest

from recipes.serve import Engine, Job, SamplingParams
from recipes.serve.outputs import Completion, RequestOutput
from tests.serve.models import EOS, tiny_decoder, tiny_engine
from tests.serve.oracle import greedy


def job(request_id: str, prompt: list[int], namespace: str = "", **params: Any) -> Job:
    made = SamplingParams(**({"temperature": 0.0, "max_tokens": 8} | params))  # type: ignore
    return Job(request_id, prompt, made, namespace=namespace)


def collect(engine: Engine, jobs: list[Job], steps: int = 100_000) -> dict[str, RequestOutput]:
    """Run until nothing is left; what each request got."""
    answers = {
        j.request_id: RequestOutput(
            j.request_id, j.prompt_tokens, [Completion(i) for i in range(j.params.n)]
        )
        for j in jobs
    }
    for _ in range(steps):
        if not engine.has_work():
            return answers
        for delta in engine.step():
            answers[delta.request_id].add(delta)
    raise AssertionError("the engine does not come to an end")


def run(engine: Engine, *jobs: Job) -> list[RequestOutput]:
    for one in jobs:
        engine.add(one)
    return list(collect(engine, list(jobs)).values())


def assert_clean(engine: Engine) -> None:
    """Nothing left: no sequence, no block held."""
    engine.scheduler.check_invariants()
    engine.manager.check_invariants()
    assert engine.scheduler.num_requests == 0
    assert engine.manager.num_free_blocks == engine.manager.num_usable_blocks


def random_prompts(count: int, rng: random.Random, vocab: int) -> list[list[int]]:
    """Prompts of 1 to 40 tokens, half of them with one of three shared heads."""
    heads = [[rng.randrange(1, vocab) for _ in range(length)] for length in (8, 13, 24)]
    prompts = []
    for _ in range(count):
        own = [rng.randrange(1, vocab) for _ in range(rng.randint(1, 16))]
        prompts.append(rng.choice(heads) + own if rng.random() < 0.5 else own)
    return prompts


def test_200_requests_under_churn_equal_one_at_a_time_runs():
    """Random arrival, a pool too small for them, shared prefixes, n > 1 and cancellation."""
    rng = random.Random(7)
    decoder = tiny_decoder()
    engine = tiny_engine(decoder, kv_bytes=36 * 4 * 256, token_budget=24, max_num_seqs=12)
    assert engine.manager.num_usable_blocks < 36
    prompts = random_prompts(200, rng, decoder.config.vocab_size)
    jobs = [
        job(f"r{i}", p, max_tokens=rng.randint(1, 24), n=rng.choice([1, 1, 1, 2, 3]))
        for i, p in enumerate(prompts)
    ]
    cancelled = set(rng.sample(range(200), 20))
    waiting = collections.deque(enumerate(jobs))
    answers = {j.request_id: [Completion(i) for i in range(j.params.n)] for j in jobs}
    alive: list[int] = []
    gone: set[str] = set()
    while waiting or engine.has_work():
        for _ in range(rng.choice([0, 0, 1, 3])):
            if waiting:
                index, one = waiting.popleft()
                engine.add(one)
                alive.append(index)
        if rng.random() < 0.1 and (doomed := [i for i in alive if i in cancelled]):
            if engine.cancel(f"r{doomed[0]}"):
                gone.add(f"r{doomed[0]}")
            alive.remove(doomed[0])
        for delta in engine.step():
            answers[delta.request_id][delta.index].add(delta)
        if rng.random() < 0.1:
            engine.scheduler.check_invariants()
            engine.manager.check_invariants()
    stats = engine.stats()
    assert stats.num_preemptions > 20
    assert stats.prefix_hits > 200
    num_cancelled = 0
    for one in jobs:
        wanted = greedy(decoder, tuple(one.prompt_tokens), one.params.max_tokens or 0, EOS)
        for completion in answers[one.request_id]:
            if completion.finish_reason is None:
                assert one.request_id in gone
                num_cancelled += 1
                assert completion.token_ids == wanted[: len(completion.token_ids)]
            else:
                assert completion.token_ids == wanted, one
    assert num_cancelled > 3
    assert_clean(engine)


def test_a_seeded_draw_is_the_same_alone_and_in_a_crowd():
    rng = random.Random(3)
    params = {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "frequency_penalty": 0.3, "n": 2}
    vocab = tiny_decoder().config.vocab_size
    jobs = [
        job(f"r{i}", prompt, seed=i, max_tokens=12, **params)
        for i, prompt in enumerate(random_prompts(12, rng, vocab))
    ]
    crowd = run(tiny_engine(kv_bytes=40 * 4 * 256, token_budget=16, max_num_seqs=8), *jobs)
    for one, answer in zip(jobs, crowd, strict=True):
        (alone,) = run(tiny_engine(), one)
        assert [c.token_ids for c in answer.completions] == [c.token_ids for c in alone.completions]


def test_samples_of_one_prompt_share_its_computation_and_differ():
    engine = tiny_engine()
    (answer,) = run(engine, job("a", list(range(1, 20)), n=6, temperature=1.0, seed=1))
    assert len({tuple(c.token_ids) for c in answer.completions}) > 1
    assert engine.scheduler.counters.num_scheduled_tokens < 19 + 6 * 8
    assert_clean(engine)


def test_a_second_request_finds_the_first_ones_prompt():
    engine = tiny_engine()
    prompt = list(range(1, 30))
    (cold,) = run(engine, job("a", prompt, logprobs=3))
    (warm,) = run(engine, job("b", prompt, logprobs=3))
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 28)
    assert cold.token_ids == warm.token_ids
    for a, b in zip(*(x.completions[0].logprobs or [] for x in (cold, warm)), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_namespaces_do_not_share_cached_blocks():
    engine = tiny_engine()
    prompt = list(range(1, 30))
    run(engine, job("a", prompt, namespace="one"))
    (other,) = run(engine, job("b", prompt, namespace="two"))
    assert other.num_cached_tokens == 0


@pytest.mark.parametrize("salt", ["b", "\0b"])
def test_no_salt_makes_a_scored_prompt_find_its_blocks(salt):
    engine = tiny_engine()
    prompt = list(range(1, 30))
    run(engine, job("a", prompt, namespace=salt))
    (scored,) = run(engine, job("b", prompt, prompt_logprobs=0))
    assert scored.prompt_logprobs is not None
    assert None not in scored.prompt_logprobs[1:]


def test_min_tokens_and_stop_tokens_and_eos():
    engine = tiny_engine()
    (free,) = run(engine, job("a", [5, 6, 7], max_tokens=6, ignore_eos=True))
    third = free.token_ids[2]
    (stopped,) = run(engine, job("b", [5, 6, 7], max_tokens=6, stop_token_ids=(third,)))
    first = free.token_ids.index(third)
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.completions[0].finish_reason == "stop"
    assert stopped.completions[0].stop_reason == third
    (late,) = run(engine, job("c", [5, 6, 7], max_tokens=6, min_tokens=4, stop_token_ids=(third,)))
    assert len(late.token_ids) >= 4
    assert third not in late.token_ids[:4]


def test_a_stop_string_ends_the_text_before_it_and_frees_the_blocks():
    engine = tiny_engine()
    (free,) = run(engine, job("a", [40, 41], max_tokens=20, ignore_eos=True))
    stop = free.text[3:5]
    (stopped,) = run(engine, job("b", [40, 41], max_tokens=20, ignore_eos=True, stop=(stop,)))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.completions[0].finish_reason == "stop"
    assert stopped.completions[0].stop_reason == stop
    assert len(stopped.token_ids) < 20
    assert_clean(engine)


def test_prompt_logprobs_cover_every_position_even_of_a_cached_prompt():
    engine = tiny_engine(token_budget=16)
    prompt = list(range(1, 40))
    run(engine, job("warm", prompt))
    (answer,) = run(engine, job("a", prompt, prompt_logprobs=1, logprobs=1))
    scores = answer.prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    assert [s.token_id for s in scores[1:] if s is not None] == prompt[1:]
    (longer,) = run(engine, job("b", prompt[:20], max_tokens=1, logprobs=20))
    report = longer.completions[0].logprobs
    assert report is not None
    expected = dict(report[0].top)
    if prompt[20] in expected:
        assert scores[20] is not None
        assert scores[20].logprob == pytest.approx(expected[prompt[20]], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "at least one token"),
        ([1, -1], {}, "token ids from 0"),
        ([1, 10**30], {}, "token ids from 0"),
        ([1, 400], {}, "token ids from 0"),
        ([1], {"logit_bias": {400: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": (400,)}, "stop_token_ids"),
        ([1] * 257, {}, "maximum context length is 256"),
        ([1] * 256, {"max_tokens": 1}, "maximum context length is 256"),
        ([1] * 200, {"max_tokens": 57}, "maximum context length is 256"),
        ([1] * 250, {"max_tokens": None, "min_tokens": 7}, "min_tokens"),
    ],
)
def test_what_can_never_run_is_refused_at_once(prompt, params, message):
    engine = tiny_engine()
    with pytest.raises(ValueError, match=message):
        engine.add(job("a", prompt, **params))
    assert not engine.has_work()
    assert_clean(engine)


def test_the_context_can_be_filled_to_its_last_token():
    engine = tiny_engine()
    (answer,) = run(engine, job("a", [1] * 250, max_tokens=None, ignore_eos=True))
    assert len(answer.token_ids) == 6


def test_a_cache_smaller_than_the_context_lowers_the_limit():
    engine = tiny_engine(kv_bytes=10 * 4 * 256)
    assert engine.max_model_len == 36
    (answer,) = run(engine, job("a", [1] * 20, max_tokens=16, ignore_eos=True))
    assert len(answer.token_ids) == 16
