import math

import pytest
import torch
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
