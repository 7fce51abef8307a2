"""Attention at the shapes of real models; the rivals are timed beside it under their own names."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benches.shapes import GEMMA2_9B, LLAMA_8B, LLAMA_70B_TP8, LLAMA_200M, QWEN3_8B, ModelShape
from blocks.attention import (
    merge_states,
    merge_states_work,
    paged_decode,
    paged_decode_work,
    paged_extend,
    paged_extend_work,
    prefill,
    prefill_work,
    reference,
)
from tests.numerics import assert_close

BLOCK_SIZE = 16
DECODES = [
    pytest.param(LLAMA_200M, 8, 2048, id="llama200m-b8-ctx2k"),
    pytest.param(LLAMA_200M, 1, 2048, id="llama200m-b1-ctx2k"),
    pytest.param(LLAMA_8B, 8, 2048, id="llama8b-b8-ctx2k"),
    pytest.param(LLAMA_70B_TP8, 8, 4096, id="llama70b_tp8-b8-ctx4k"),
    pytest.param(GEMMA2_9B, 2, 4096, id="gemma2-b2-ctx4k"),
]
CHUNKS = [
    pytest.param(LLAMA_200M, 512, 2048, id="llama200m-q512-ctx2k"),
    pytest.param(QWEN3_8B, 512, 2048, id="qwen3-q512-ctx2k"),
]


def inputs(model: ModelShape, batch: int, query_len: int, context: int, device: torch.device):
    """bf16 inputs of ``paged_extend`` over scattered blocks."""
    per_sequence = -(-context // BLOCK_SIZE)
    num_blocks = batch * per_sequence + 1
    shape = (num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    keys = torch.randn(shape, dtype=torch.bfloat16, device=device)
    values = torch.randn(shape, dtype=torch.bfloat16, device=device)
    table = 1 + torch.randperm(num_blocks - 1, device=device).int().view(batch, -1)
    lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=device) * query_len
    query = torch.randn(batch * query_len, model.num_heads, model.head_dim, device=device)
    return query.bfloat16(), keys, values, table, lens, bounds


def contiguous(cache: torch.Tensor, table: torch.Tensor, context: int) -> torch.Tensor:
    """[batch, num_kv_heads, context, head_dim], a fresh copy."""
    return cache[table.long()].flatten(1, 2)[:, :context].transpose(1, 2)


def sizes(model: ModelShape) -> dict[str, Any]:
    return {
        "num_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "itemsize": 2,
    }


@pytest.mark.parametrize("how", ["ours", "sdpa-contiguous", "gather-sdpa"])
@pytest.mark.parametrize(("model", "batch", "context"), DECODES)
def bench_paged_decode(timed, device, model, batch, context, how):
    query, keys, values, table, lens, _ = inputs(model, batch, 1, context, device)
    k, v = (contiguous(cache, table, context).contiguous() for cache in (keys, values))

    def sdpa(k, v):
        return F.scaled_dot_product_attention(query[:, :, None], k, v, enable_gqa=True)[:, :, 0]

    calls = {
        "ours": lambda: paged_decode(query, keys, values, table, lens),
        "sdpa-contiguous": lambda: sdpa(k, v),
        "gather-sdpa": lambda: sdpa(
            contiguous(keys, table, context), contiguous(values, table, context)
        ),
    }
    expected = reference.paged_decode(query, keys, values, table, lens)
    assert_close(calls[how](), expected)
    timed(calls[how], work=paged_decode_work([context] * batch, **sizes(model)), how=how)


@pytest.mark.parametrize("how", ["ours", "sdpa-contiguous"])
@pytest.mark.parametrize(("model", "query_len", "context"), CHUNKS)
def bench_paged_extend(timed, device, model, query_len, context, how):
    query, keys, values, table, lens, bounds = inputs(model, 1, query_len, context, device)
    k, v = (contiguous(cache, table, context).contiguous() for cache in (keys, values))
    rows = torch.arange(query_len, device=device)[:, None] + context - query_len
    mask = rows >= torch.arange(context, device=device)

    def sdpa():
        q = query.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    calls = {
        "ours": lambda: paged_extend(query, keys, values, table, lens, bounds),
        "sdpa-contiguous": sdpa,
    }
    expected = reference.paged_extend(query, keys, values, table, lens, bounds)
    assert_close(calls[how](), expected)
    timed(calls[how], work=paged_extend_work([query_len], [context], **sizes(model)), how=how)


@pytest.mark.parametrize("how", ["ours", "sdpa"])
def bench_prefill(timed, device, how):
    model, batch, length = LLAMA_200M, 2, 1024
    shapes = [model.num_heads, model.num_kv_heads, model.num_kv_heads]
    q, k, v = tensors = [
        torch.randn(batch * length, heads, model.head_dim, device=device).bfloat16()
        for heads in shapes
    ]
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=device) * length

    def sdpa():
        a, b, c = (t.unflatten(0, (batch, length)).transpose(1, 2) for t in tensors)
        out = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    calls = {"ours": lambda: prefill(q, k, v, bounds), "sdpa": sdpa}
    assert_close(calls[how](), reference.prefill(q, k, v, bounds))
    timed(
        calls[how], work=prefill_work([length] * batch, None, causal=True, **sizes(model)), how=how
    )


def bench_merge_states(timed, device):
    model = LLAMA_8B
    outputs = torch.randn(8, 16, model.num_heads, model.head_dim, device=device)
    lses = torch.randn(8, 16, model.num_heads, device=device)
    merged = timed(
        lambda: merge_states(outputs, lses),
        work=merge_states_work(8, 16, model.num_heads, model.head_dim, 4),
        dtype=torch.float32,
    )
    assert_close(merged.output, reference.merge_states(outputs, lses).output, slack=2)
