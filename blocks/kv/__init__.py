"""Who owns which page of the key-value cache, and the paged tensors themselves.

Names that need torch are loaded when first asked for, so an allocator runs without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from blocks.kv.block_manager import BlockManager
from blocks.kv.block_pool import NULL_BLOCK, BlockPool, OutOfBlocks
from blocks.kv.block_table import BlockTable
from blocks.kv.prefix_cache import Prefix, PrefixCache
from blocks.kv.usage import KVUsage

if TYPE_CHECKING:
    from blocks.kv.cache import KVCache, bytes_per_token
    from blocks.kv.copy import copy_blocks, copy_blocks_work, swap_blocks, swap_blocks_work
    from blocks.kv.rope_write import rope_write_kv, rope_write_kv_work
    from blocks.kv.scales import ScaleKind
    from blocks.kv.write import write_kv, write_kv_work

_WITH_TORCH = {
    "cache": ("KVCache", "bytes_per_token"),
    "copy": ("copy_blocks", "copy_blocks_work", "swap_blocks", "swap_blocks_work"),
    "rope_write": ("rope_write_kv", "rope_write_kv_work"),
    "scales": ("ScaleKind",),
    "write": ("write_kv", "write_kv_work"),
}
_HOME = {name: module for module, names in _WITH_TORCH.items() for name in names}

__all__ = [
    "NULL_BLOCK",
    "BlockManager",
    "BlockPool",
    "BlockTable",
    "KVCache",
    "KVUsage",
    "OutOfBlocks",
    "Prefix",
    "PrefixCache",
    "ScaleKind",
    "bytes_per_token",
    "copy_blocks",
    "copy_blocks_work",
    "rope_write_kv",
    "rope_write_kv_work",
    "swap_blocks",
    "swap_blocks_work",
    "write_kv",
    "write_kv_work",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
