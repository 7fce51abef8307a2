"""Latent attention at DeepSeek's sizes, the heads of one device of eight and all of them."""

import pytest
import torch

from blocks.attention import mla_decode, mla_decode_work, reference
from tests.numerics import assert_close

LATENT, ROPE, BLOCK_SIZE, SCALE = 512, 64, 64, 192**-0.5


def inputs(batch: int, num_heads: int, context: int, device: torch.device):
    """bf16 query, cache of scattered blocks, table and lengths."""
    per_sequence = -(-context // BLOCK_SIZE)
    generator = torch.Generator().manual_seed(0)
    shape = (batch * per_sequence + 1, BLOCK_SIZE, LATENT + ROPE)
    cache = torch.randn(shape, generator=generator).to(device, torch.bfloat16)
    query = torch.randn(batch, num_heads, LATENT + ROPE, generator=generator)
    table = 1 + torch.randperm(shape[0] - 1, generator=generator).int().view(batch, -1)
    lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    return query.to(device, torch.bfloat16), cache, table.to(device), lens


@pytest.mark.parametrize("how", ["ours", "gather-matmul"])
@pytest.mark.parametrize("num_heads", [16, 128])
def bench_mla_decode(timed, device, num_heads, how):
    batch, context = (128, 4096) if device.type == "cuda" else (4, 1024)
    query, cache, table, lens = inputs(batch, num_heads, context, device)

    def gather() -> torch.Tensor:
        rows = cache[table.long()].flatten(1, 2)[:, :context]
        weights = (query @ rows.mT * SCALE).float().softmax(-1)
        return weights.bfloat16() @ rows[..., :LATENT]

    calls = {
        "ours": lambda: mla_decode(query, cache, table, lens, scale=SCALE),
        "gather-matmul": gather,
    }
    few = (query[:2], cache, table[:2], lens[:2])
    slack = 1.0 if how == "ours" else 4.0  # torch rounds the scores to bf16
    assert_close(calls[how]()[:2], reference.mla_decode(*few, scale=SCALE), slack=slack)
    work = mla_decode_work([context] * batch, num_heads=num_heads, itemsize=2)
    timed(calls[how], work=work, how=how)
