"""Counts that are none are refused by name, by every constructor."""

from tests.counts import check_refused

SETUP = """
import torch
from blocks.kv import *
"""
GOOD = {
    "manager": "BlockManager(num_blocks=8, block_size=4)",
    "pool": "BlockPool(num_blocks=8)",
    "table": "BlockTable(block_size=4, block_ids=[1], num_tokens=3)",
    "prefixes": "PrefixCache(block_size=4)",
    "cache": (
        "KVCache(num_blocks=4, num_layers=1, block_size=4, num_kv_heads=2, head_dim=8, "
        "dtype=torch.float32)"
    ),
    "budget": (
        "KVCache.from_budget(cache_bytes=9999, num_layers=1, block_size=4, num_kv_heads=2, "
        "head_dim=8, dtype=torch.float32)"
    ),
    "token": "bytes_per_token(num_layers=1, num_kv_heads=2, head_dim=8, dtype=torch.float32)",
}
COUNTS = {
    "manager": ["num_blocks", "block_size"],
    "pool": ["num_blocks"],
    "table": ["block_size", "num_tokens"],
    "prefixes": ["block_size"],
    "cache": ["num_blocks", "num_layers", "block_size", "num_kv_heads", "head_dim"],
    "budget": ["cache_bytes", "num_layers", "block_size", "num_kv_heads", "head_dim"],
    "token": ["num_layers", "num_kv_heads", "head_dim"],
}


def test_counts_are_whole_numbers() -> None:
    check_refused(SETUP, GOOD, COUNTS)
