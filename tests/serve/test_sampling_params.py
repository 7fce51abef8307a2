"""Every client number is bounded; NaN and infinities never pass."""

import math

import pytest

from recipes.serve import SamplingParams

REFUSED = [
    ("temperature", [-0.1, 11, math.nan, math.inf, True, "1"]),
    ("top_k", [-2, 1.5, 2**40, True]),
    ("top_p", [-0.1, 1.1, math.nan]),
    ("min_p", [-0.1, 1.1, math.nan]),
    ("n", [0, -1, 129, 10**30, 1.0]),
    ("seed", [2**63, -(2**63) - 1, 1.5]),
    ("max_tokens", [0, -1, 2**31, 10**400]),
    ("min_tokens", [-1, 2**31]),
    ("presence_penalty", [-2.1, 2.1, math.nan]),
    ("frequency_penalty", [-2.1, 2.1, -math.inf]),
    ("repetition_penalty", [0, -1, 11, math.nan]),
    ("logprobs", [-1, 21]),
    ("prompt_logprobs", [-1, 21]),
    ("stop", [("",), ("x" * 257,), ("a",) * 17, (1,), 5, None]),
    ("stop_token_ids", [(-1,), (2**31,), tuple(range(65)), (1.5,), 3]),
    ("logit_bias", [{-1: 0.0}, {1: 101.0}, {1: math.nan}, dict.fromkeys(range(1025), 0.0), 3, [1]]),
    ("ignore_eos", ["yes", 1, None]),
    ("skip_special_tokens", ["no", 0]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED for value in values]
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        SamplingParams(**{name: value})


def test_min_tokens_beyond_max_tokens_is_refused():
    with pytest.raises(ValueError, match="min_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1e-6}, {"top_k": 1}])
def test_what_can_only_give_one_token_is_greedy(params):
    assert SamplingParams(**params).is_greedy


@pytest.mark.parametrize("params", [{"logprobs": 0}, {"presence_penalty": 1}, {"min_tokens": 1}])
def test_plain_greedy_rows_neither_edit_nor_report(params):
    assert SamplingParams(temperature=0).is_plain_greedy
    assert not SamplingParams(temperature=0, **params).is_plain_greedy
