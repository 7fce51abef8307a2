"""Rows are drawn as their own request asks, and fail alone."""

import math
from typing import Any

import pytest
import torch

from recipes.serve import SamplingParams, sampler
from recipes.serve.sampler import Draw, SampleState, draw, seed_of, token_logprobs


def state(tokens=(3, 4), num_prompt=2, seed=1, banned=(), **params: Any) -> SampleState:
    made = SamplingParams(**({"temperature": 0.0} | params))  # type: ignore
    return SampleState(made, seed, list(tokens), num_prompt, banned)


def tokens_of(logits, *states) -> list[int]:
    return [one.token for one in draw(logits, [Draw(i, s) for i, s in enumerate(states)])]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 50, generator=torch.Generator().manual_seed(0))


def test_greedy_is_argmax_in_any_dtype(logits):
    for dtype in (torch.float32, torch.bfloat16):
        expected = logits.to(dtype).float().argmax(-1).tolist()
        assert tokens_of(logits.to(dtype), *(state() for _ in range(4))) == expected


def test_a_rows_draw_does_not_depend_on_its_batch(logits):
    states = [
        state(),
        state(temperature=1.0, seed=5),
        state(temperature=0.7, top_k=5, top_p=0.9, seed=6),
        state(temperature=1.3, min_p=0.05, presence_penalty=1.0, seed=7),
    ]
    together = tokens_of(logits, *states)
    alone = [draw(logits[i : i + 1], [Draw(0, s)])[0].token for i, s in enumerate(states)]
    assert together == alone


def test_several_samples_of_one_row_differ_by_seed(logits):
    draws = [Draw(0, state(temperature=1.5, seed=seed_of(9, index))) for index in range(64)]
    assert len({one.token for one in draw(logits[:1], draws)}) > 8


def test_penalties_count_the_output_only_and_repetition_the_prompt_too():
    logits = torch.tensor([[1.0, 0.9, 0.8, 0.1]])
    seen = {"tokens": (0, 1), "num_prompt": 1}  # prompt 0, output 1
    assert tokens_of(logits, state(**seen, presence_penalty=1.0)) == [0]
    assert tokens_of(logits, state(**seen, repetition_penalty=2.0)) == [2]
    twice = {"tokens": (1, 0, 0, 1), "num_prompt": 1}
    assert tokens_of(logits, state(**twice, frequency_penalty=0.06)) == [0]
    assert tokens_of(logits[:, :2], state(**twice, frequency_penalty=0.12)) == [1]


def test_counts_follow_the_live_token_list():
    live = [5, 6]
    one = SampleState(SamplingParams(presence_penalty=1.0), 0, live, 1, ())
    assert one.counts() == {5: 0, 6: 1}
    live += [6, 7]
    assert one.counts() == {5: 0, 6: 2, 7: 1}


def test_logit_bias_and_min_tokens():
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert tokens_of(logits, state(logit_bias={2: 5.0})) == [2]
    early = state(tokens=(1,), num_prompt=1, banned=(0,), min_tokens=1)
    assert tokens_of(logits, early) == [1]
    late = state(tokens=(1, 1), num_prompt=1, banned=(0,), min_tokens=1)
    assert tokens_of(logits, late) == [0]


def test_edits_do_not_reach_the_callers_logits(logits):
    before = logits.clone()
    draw(logits, [Draw(0, state(logit_bias={1: 3.0}, repetition_penalty=2.0))])
    assert torch.equal(logits, before)


def test_logprobs_are_those_of_the_raw_distribution(logits):
    one = state(temperature=2.0, logit_bias={7: 100.0}, logprobs=3)
    (drawn,) = draw(logits[:1], [Draw(0, one)])
    expected = logits[0].log_softmax(-1)
    assert drawn.token == 7
    assert drawn.logprob is not None
    assert drawn.logprob.logprob == pytest.approx(expected[7].item(), abs=1e-5)
    assert [t for t, _ in drawn.logprob.top] == expected.topk(3).indices.tolist()


def test_each_row_reports_as_many_as_it_asked_for(logits):
    reports = token_logprobs(logits, [1, 2, 3, 4], [0, 1, 5, 20])
    assert [len(report.top) for report in reports] == [0, 1, 5, 20]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_poisoned_row_fails_alone(logits, poison, temperature):
    states = [state(temperature=temperature) for _ in range(4)]
    healthy = tokens_of(logits, *states)
    logits[2, 11] = poison
    drawn = draw(logits, [Draw(i, s) for i, s in enumerate(states)])
    assert [one.error is not None for one in drawn] == [False, False, True, False]
    assert [one.token for i, one in enumerate(drawn) if i != 2] == healthy[:2] + healthy[3:]


def test_an_exception_in_one_row_fails_that_row_alone(logits, monkeypatch):
    original = sampler.sample
    states = [state(temperature=1.0, seed=i) for i in range(4)]
    healthy = tokens_of(logits, *states)

    def sample(scores, *, seeds, **options):
        if 2 in seeds:
            raise RuntimeError("poison")
        return original(scores, seeds=seeds, **options)

    monkeypatch.setattr(sampler, "sample", sample)
    drawn = draw(logits, [Draw(i, s) for i, s in enumerate(states)])
    assert [one.error is not None for one in drawn] == [False, False, True, False]
    assert [one.token for i, one in enumerate(drawn) if i != 2] == healthy[:2] + healthy[3:]


def test_seeds_stay_in_64_bits():
    assert seed_of(42, 0) == 42
    assert all(-(2**63) <= seed_of(s, i) < 2**63 for s in (0, 2**63 - 1) for i in range(128))
    assert len({seed_of(42, i) for i in range(128)}) == 128
