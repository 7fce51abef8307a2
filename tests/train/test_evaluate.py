import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.model import ModelConfig, batched_attend
from recipes.train.attend import blocked_attend
from recipes.train.evaluate import bits_per_byte, evaluate
from tests.numerics import assert_close


@pytest.mark.parametrize("seq_len", [1, 100, 128, 129, 300])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_blocked_attention_is_causal_attention(seq_len, num_kv_heads):
    config = ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=32,
        intermediate_size=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        max_positions=512,
    )
    generator = torch.Generator().manual_seed(seq_len)
    shapes = [(2 * seq_len, heads, 8) for heads in (4, num_kv_heads, num_kv_heads)]
    tensors = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]
    slope = torch.randn(shapes[0], generator=generator)
    results = []
    for attend in (blocked_attend(config, seq_len), batched_attend(config, seq_len)):
        out = attend(0, *tensors)
        results.append((out, *torch.autograd.grad(out, tensors, slope)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)


@given(length=st.integers(2, 100), context_len=st.integers(1, 20), batch_size=st.integers(1, 5))
def test_evaluation_predicts_each_token_once(length, context_len, batch_size):
    stream = np.arange(length, dtype=np.uint16)
    lengths = np.arange(length) % 7
    seen = []

    def loss_sum(inputs, labels):
        assert (labels == inputs + 1).all()
        seen.extend(labels.flatten().tolist())
        return torch.tensor(0.5 * labels.numel())

    found = evaluate(loss_sum, stream, lengths, context_len=context_len, batch_size=batch_size)
    counted = (length - 1) // context_len * context_len or length - 1
    assert seen == list(range(1, counted + 1))
    assert found.loss == pytest.approx(0.5)
    if num_bytes := lengths[1 : counted + 1].sum():
        assert found.bits_per_byte == pytest.approx(0.5 * counted / math.log(2) / num_bytes)


@pytest.mark.parametrize("max_tokens", [1, 10, 35, 100, 1000])
def test_a_short_look_is_spread_over_the_stream(max_tokens):
    seen = []

    def loss_sum(inputs, labels):
        seen.extend(inputs[:, 0].tolist())
        return torch.tensor(1.0)

    stream, lengths = np.arange(101, dtype=np.uint16), np.ones(101, dtype=np.int64)
    evaluate(loss_sum, stream, lengths, context_len=10, batch_size=2, max_tokens=max_tokens)
    count = max(1, min(10, max_tokens // 10))
    assert len(seen) == len(set(seen)) == count
    assert all(start % 10 == 0 for start in seen)
    assert max(seen) >= 100 - 2 * 100 / count
