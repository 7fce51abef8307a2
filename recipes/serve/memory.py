"""How much memory the keys and values get, and the cache made of it."""

import os
from typing import Any

import torch

from blocks.kv import KVCache, bytes_per_token
from recipes.model import Decoder
from recipes.serve.config import EngineConfig

DEFAULT_MAX_BYTES = 2**30
"""Most that is taken without being asked; CPU pages are only used as blocks are first written."""
KV_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""Quantised storage of keys and values, by the name users give it."""


def make_cache(decoder: Decoder, config: EngineConfig) -> KVCache:
    """The cache of an engine, from its budget or from what it can use."""
    model = decoder.config
    weight = next(decoder.parameters())
    sizes: dict[str, Any] = {
        "num_layers": model.num_layers,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "dtype": KV_DTYPES.get(config.kv_dtype, weight.dtype),
        "scales": "token" if config.kv_dtype in KV_DTYPES else None,
    }
    budget = config.kv_bytes
    if budget is None:
        limit = config.max_model_len or model.max_positions
        blocks = config.max_num_seqs * -(-limit // config.block_size) + 1
        useful = blocks * config.block_size * bytes_per_token(**sizes)
        budget = min(useful, DEFAULT_MAX_BYTES, max(free_memory() // 4, 2**24))
    return KVCache.from_budget(budget, block_size=config.block_size, device=weight.device, **sizes)


def free_memory() -> int:
    """Memory the machine could give now [bytes]."""
    try:
        with open("/proc/meminfo") as info:
            for line in info:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
