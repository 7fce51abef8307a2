import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from blocks.ops import (
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    apply_rope,
    rope_frequencies,
    rope_table,
)
from tests.numerics import assert_close

FAST = ["native", "triton"]

HEAD_DIM = 64
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 2048}
CASES = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, LinearScaling(4.0)),
    "llama3": ({"rope_type": "llama3", **LLAMA3}, Llama3Scaling()),
    "llama3.2": ({"rope_type": "llama3", **LLAMA3, "factor": 32.0}, Llama3Scaling(32.0)),
    "yarn": ({"rope_type": "yarn", **YARN}, YarnScaling(4.0, 2048)),
    "yarn-shrinking": ({"rope_type": "yarn", **YARN, "factor": 0.5}, YarnScaling(0.5, 2048)),
    "yarn-given-factor": (
        {"rope_type": "yarn", **YARN, "attention_factor": 1.5},
        YarnScaling(4.0, 2048, attention_factor=1.5),
    ),
    "yarn-mscale": (
        {"rope_type": "yarn", **YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
        YarnScaling(4.0, 2048, mscale=0.707, mscale_all_dim=1.0),
    ),
    "yarn-betas": (
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        YarnScaling(4.0, 2048, beta_fast=16.0, beta_slow=2.0, truncate=False),
    ),
}


def hf_config(parameters: dict, theta: float, head_dim: int = HEAD_DIM) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": theta, **parameters},
    )


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("case", CASES)
def test_scaled_frequencies_equal_transformers(case: str, head_dim: int, theta: float) -> None:
    parameters, scaling = CASES[case]
    config = hf_config(parameters, theta, head_dim)
    expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, device=None)
    frequencies = rope_frequencies(head_dim, theta=theta, scaling=scaling)
    assert torch.equal(frequencies.inverse, expected)
    assert frequencies.attention_factor == factor


@pytest.mark.parametrize("case", ["plain", *CASES])
def test_rotation_equals_transformers(case: str, seeded: torch.Generator) -> None:
    parameters, scaling = CASES.get(case, ({"rope_type": "default"}, None))
    embedding = LlamaRotaryEmbedding(hf_config(parameters, 10000.0))
    positions = torch.tensor([0, 1, 5, 4095, 17])
    query = torch.randn(5, 4, HEAD_DIM, generator=seeded)
    key = torch.randn(5, 2, HEAD_DIM, generator=seeded)
    cos, sin = embedding(query, positions[None])
    expected = apply_rotary_pos_emb(query[None], key[None], cos, sin, unsqueeze_dim=2)
    table = rope_table(rope_frequencies(HEAD_DIM, scaling=scaling), 4096)
    actual = apply_rope(query, key, positions, table)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e[0], rtol=0, atol=2e-6)


def test_yarn_stretches_attention_as_the_paper_says() -> None:
    factor = rope_frequencies(64, scaling=YarnScaling(16.0, 4096)).attention_factor
    assert factor == pytest.approx(0.1 * math.log(16) + 1)


@pytest.mark.parametrize("impl", FAST)
@given(
    num_tokens=st.integers(0, 5),
    heads=st.tuples(st.integers(1, 4), st.integers(1, 2)),
    half_rotary_dim=st.integers(1, 20),
    passing_dims=st.integers(0, 5),
    interleaved=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_fast_rope_equals_reference_and_turns_views_in_place(
    impl,
    num_tokens: int,
    heads: tuple[int, int],
    half_rotary_dim: int,
    passing_dims: int,
    interleaved: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rotary_dim = 2 * half_rotary_dim
    head_dim = rotary_dim + passing_dims
    num_heads, num_kv_heads = heads
    fused = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator)
    fused = fused.to(dtype)
    query, key = views(fused, num_heads, num_kv_heads, head_dim)
    positions = torch.randint(0, 50, (num_tokens,), generator=generator)
    table = rope_table(rope_frequencies(rotary_dim), 50)
    options = {"interleaved": interleaved}
    expected = apply_rope(query, key, positions, table, **options, impl="reference")

    untouched = fused.clone()
    actual = apply_rope(query, key, positions, table, **options, impl=impl)
    assert torch.equal(fused, untouched)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)

    returned = apply_rope(query, key, positions, table, **options, inplace=True, impl=impl)
    assert returned[0] is query
    assert returned[1] is key
    for a, e in zip((query, key), expected, strict=True):
        assert_close(a, e)
    value_start = (num_heads + num_kv_heads) * head_dim
    assert torch.equal(fused[:, value_start:], untouched[:, value_start:])
    if passing_dims:
        kept = views(untouched, num_heads, num_kv_heads, head_dim)
        assert torch.equal(query[..., rotary_dim:], kept[0][..., rotary_dim:])


def views(fused: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int):
    """Query and key as views of a fused projection [num_tokens, (query, key, value)]."""
    ends = num_heads * head_dim, (num_heads + num_kv_heads) * head_dim
    query = fused[:, : ends[0]].unflatten(1, (num_heads, head_dim))
    key = fused[:, ends[0] : ends[1]].unflatten(1, (num_kv_heads, head_dim))
    return query, key


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("position", [-1, 8])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_position_outside_the_table_is_refused_and_nothing_written(
    impl, position: int, inplace: bool
) -> None:
    table = rope_table(rope_frequencies(4), 8)
    query = torch.ones(2, 1, 4)
    positions = torch.tensor([3, position])
    with pytest.raises(ValueError, match=r"positions: expected within \[0, 8\)"):
        apply_rope(query, query.clone(), positions, table, inplace=inplace, impl=impl)
    assert torch.equal(query, torch.ones(2, 1, 4))


@given(
    offset=st.integers(0, 30),
    positions=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    interleaved=st.booleans(),
)
def test_scores_depend_on_the_distance_only(
    offset: int, positions: tuple[int, int], interleaved: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 16, generator=generator).expand(2, 1, 16) for _ in range(2))
    table = rope_table(rope_frequencies(16), 64)
    at_query = torch.tensor([positions[0], positions[0] + offset])
    at_key = torch.tensor([positions[1], positions[1] + offset])
    turned_query, _ = apply_rope(query, key, at_query, table, interleaved=interleaved)
    _, turned_key = apply_rope(query, key, at_key, table, interleaved=interleaved)
    scores = (turned_query * turned_key).sum(-1)
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


def test_gradients_turn_back() -> None:
    table = rope_table(rope_frequencies(8), 16)
    query, key = torch.randn(3, 2, 8, requires_grad=True), torch.randn(3, 1, 8, requires_grad=True)
    turned = apply_rope(query, key, torch.tensor([1, 5, 9]), table)
    (turned[0].square().sum() + turned[1].square().sum()).backward()
    assert query.grad is not None
    torch.testing.assert_close(query.grad, 2 * query.detach())  # a rotation keeps the norm
    with pytest.raises(ValueError, match="inplace: expected no gradients"):
        apply_rope(query, key, torch.tensor([1, 5, 9]), table, inplace=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.zeros(3, dtype=torch.int64)}, r"positions shape: expected \[2\]"),
        ({"positions": torch.zeros(2)}, "positions dtype: expected torch.int64"),
        ({"key": torch.ones(2, 1, 6)}, "key shape: expected"),
        ({"key": torch.ones(2, 1, 4).bfloat16()}, "key dtype: expected torch.float32"),
        ({"cos_sin": torch.ones(8, 6)}, "rotary_dim: expected an even number up to head_dim 4"),
        ({"cos_sin": torch.ones(8, 3)}, "rotary_dim: expected an even number up to head_dim 4"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    arguments = {
        "query": torch.ones(2, 1, 4),
        "key": torch.ones(2, 1, 4),
        "positions": torch.tensor([0, 1]),
        "cos_sin": torch.ones(8, 4),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        inspect.unwrap(apply_rope)(**{**arguments, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope_frequencies(7), "rotary_dim: expected a positive even number, got 7"),
        (lambda: rope_frequencies(8, theta=1.0), "theta: expected a number above 1"),
        (lambda: rope_frequencies(8, scaling=LinearScaling(0.0)), "scaling.factor"),
        (lambda: rope_frequencies(8, scaling=YarnScaling(2.0, 0)), "original_max_positions"),
        (
            lambda: rope_frequencies(8, scaling=Llama3Scaling(high_freq_factor=1.0)),
            "0 < low_freq_factor < high_freq_factor",
        ),
        (lambda: rope_table(rope_frequencies(8), 0), "max_positions: expected a positive number"),
    ],
)
def test_bad_settings_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
def test_expanded_views_are_not_turned_in_place(impl) -> None:
    query, key = torch.ones(1, 1, 4).expand(2, 1, 4), torch.ones(2, 1, 4)
    table = rope_table(rope_frequencies(4), 8)
    with pytest.raises(ValueError, match="inplace: expected strides above 0"):
        apply_rope(query, key, torch.tensor([1, 2]), table, inplace=True, impl=impl)
    assert torch.equal(query, torch.ones(2, 1, 4))
