"""The small operations at the shapes of real models, each checked against its reference first.

Norms stand in ``bench_norm.py``, training steps of all in ``bench_gradients.py``.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from benches.shapes import GEMMA2_9B, LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops
from tests.numerics import assert_close

MODELS = [TINY, LLAMA_200M, LLAMA_8B]
ROWS = [1, 8, 32]
DTYPE = torch.bfloat16


def named(model: ModelShape) -> str:
    return model.name


def values(device: torch.device, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", MODELS, ids=named)
def bench_linear(timed, device: torch.device, model: ModelShape, num_rows: int) -> None:
    inputs, outputs = model.hidden_size, 2 * model.intermediate_size
    x, weight = values(device, num_rows, inputs), values(device, outputs, inputs)
    assert_close(ops.linear(x, weight), ops.linear(x, weight, impl="reference"), slack=2)
    work = ops.linear_work(num_rows, inputs, outputs, 2)
    with torch.inference_mode():
        timed(lambda: ops.linear(x, weight), work=work, model=model.name, num_rows=num_rows)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", [*MODELS, GEMMA2_9B], ids=named)
def bench_apply_rope(timed, device: torch.device, model: ModelShape, num_rows: int) -> None:
    query = values(device, num_rows, model.num_heads, model.head_dim)
    key = values(device, num_rows, model.num_kv_heads, model.head_dim)
    table = ops.rope_table(ops.rope_frequencies(model.head_dim), 4096, device=device)
    positions = torch.arange(num_rows, device=device)
    expected = ops.apply_rope(query, key, positions, table, impl="reference")
    assert_close(ops.apply_rope(query, key, positions, table)[0], expected[0])
    work = ops.rope_work(num_rows, model.num_heads, model.num_kv_heads, model.head_dim, 2)
    with torch.inference_mode():
        timed(
            lambda: ops.apply_rope(query, key, positions, table, inplace=True),
            work=work,
            cold=False,
            model=model.name,
        )


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", MODELS, ids=named)
def bench_silu_and_mul(timed, device: torch.device, model: ModelShape, num_rows: int) -> None:
    gate_up = values(device, num_rows, 2 * model.intermediate_size)
    assert_close(ops.silu_and_mul(gate_up), ops.silu_and_mul(gate_up, impl="reference"))
    work = ops.gated_work(num_rows, model.intermediate_size, 2)
    with torch.inference_mode():
        timed(lambda: ops.silu_and_mul(gate_up), work=work, cold=False, model=model.name)


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        ("greedy", {"temperature": 0.0}),
        ("plain", {}),
        ("top-k", {"top_k": 50}),
        ("top-p", {"top_p": 0.9}),
    ],
)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", [TINY, LLAMA_200M], ids=named)
def bench_sample(timed, device, model: ModelShape, num_rows: int, rules: str, options) -> None:
    logits = 3 * values(device, num_rows, model.vocab_size, dtype=torch.float32)
    options = {**options, "seeds": torch.arange(num_rows), "positions": torch.arange(num_rows)}
    drawn = ops.sample(logits, **options)
    assert torch.equal(drawn, ops.sample(logits, **options, impl="reference"))
    work = ops.sample_work(num_rows, model.vocab_size, 4)
    timed(
        lambda: ops.sample(logits, **options),
        work=work,
        dtype=torch.float32,
        cold=False,
        model=model.name,
        rules=rules,
    )


@pytest.mark.parametrize("num_top", [0, 20])
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("model", [TINY, LLAMA_200M], ids=named)
def bench_top_logprobs(timed, device, model: ModelShape, num_rows: int, num_top: int) -> None:
    logits = 3 * values(device, num_rows, model.vocab_size)
    token_ids = torch.arange(num_rows, device=device) % model.vocab_size
    found = ops.top_logprobs(logits, token_ids, num_top)
    expected = ops.top_logprobs(logits, token_ids, num_top, impl="reference")
    assert_close(found.chosen, expected.chosen)
    assert_close(found.top, expected.top)
    work = ops.top_logprobs_work(num_rows, model.vocab_size, num_top, 2)
    timed(
        lambda: ops.top_logprobs(logits, token_ids, num_top),
        work=work,
        dtype=torch.float32,
        cold=False,
        model=model.name,
    )


@pytest.mark.parametrize("num_rows", ROWS)
def bench_apply_penalties(timed, device: torch.device, num_rows: int) -> None:
    """500 different tokens a sequence."""
    logits = values(device, num_rows, LLAMA_200M.vocab_size, dtype=torch.float32)
    rows = torch.arange(num_rows, device=device).repeat_interleave(500)
    token_ids = (torch.arange(500, device=device) * 61).repeat(num_rows)
    counts = torch.arange(len(rows), device=device) % 3
    settings: dict[str, Any] = {"repetition": 1.1, "presence": 0.1, "frequency": 0.2}
    given = (rows, token_ids, counts)
    expected = ops.apply_penalties(logits.cpu(), *(x.cpu() for x in given), **settings)
    assert_close(ops.apply_penalties(logits.clone(), *given, **settings), expected)
    timed(
        lambda: ops.apply_penalties(logits, *given, **settings),
        work=ops.penalties_work(len(rows), 4),
        dtype=torch.float32,
        cold=False,
    )
