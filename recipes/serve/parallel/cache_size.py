"""How many blocks the cache of every rank gets: as many as the rank with the least room holds."""

from typing import Any

import torch

from blocks._checks import fail
from blocks.kv import bytes_per_token
from recipes.model import ModelConfig
from recipes.serve.config import EngineConfig
from recipes.serve.memory import DEFAULT_MAX_BYTES, KV_DTYPES, free_memory
from recipes.serve.parallel.layout import Layout
from recipes.serve.sizes import format_bytes


def cache_fields(
    model: ModelConfig, layout: Layout, rank: int, kv_dtype: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Sizes of a rank's cache, as ``KVCache`` takes them."""
    return {
        "num_layers": len(layout.layers(model)[layout.stage(rank)]),
        "num_kv_heads": layout.kv_heads(model, rank),
        "head_dim": model.head_dim,
        "dtype": KV_DTYPES.get(kv_dtype, dtype),
        "scales": "token" if kv_dtype in KV_DTYPES else None,
    }


def cache_blocks(
    model: ModelConfig, layout: Layout, config: EngineConfig, dtype: torch.dtype
) -> tuple[int, int]:
    """Blocks of every rank's cache, and the bytes of a block on the rank where it is largest.

    Raises:
        ValueError: not even the null block and one usable block fit.
    """
    fields = [
        cache_fields(model, layout, rank, config.kv_dtype, dtype)
        for rank in range(layout.num_ranks)
    ]
    block_bytes = config.block_size * max(bytes_per_token(**sizes) for sizes in fields)
    budget = config.kv_bytes
    if budget is None:
        limit = config.max_model_len or model.max_positions
        blocks = config.max_num_seqs * -(-limit // config.block_size) + 1
        share = max(free_memory() // 4 // layout.num_ranks, 2**24)
        budget = min(blocks * block_bytes, DEFAULT_MAX_BYTES, share)
    if budget < 2 * block_bytes:
        need = f"at least {2 * block_bytes} for every rank (the null block and one usable block)"
        raise fail("kv_bytes", need, budget, "raise it or take a smaller block_size or dtype")
    return budget // block_bytes, block_bytes


def explain_cache(
    model: ModelConfig, layout: Layout, num_blocks: int, block_bytes: int, block_size: int
) -> str:
    """How many tokens fit, and who holds what of them."""
    stages = ", ".join(f"{len(held)}" for held in layout.layers(model))
    heads = [layout.kv_heads(model, rank) for rank in range(layout.tp)]
    return (
        f"{(num_blocks - 1) * block_size} tokens fit: {num_blocks - 1} blocks x {block_size} "
        f"tokens (and 1 null block), at most {format_bytes(num_blocks * block_bytes)} a rank\n"
        f"{layout.num_ranks} ranks: {layout.pp} stages of {stages} layers, each over {layout.tp} "
        f"ranks with {', '.join(map(str, heads))} of {model.num_kv_heads} key and value heads"
    )
