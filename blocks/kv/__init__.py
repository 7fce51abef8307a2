"""Who owns which page of the key-value cache, and the paged tensors themselves."""

from blocks.kv.block_manager import BlockManager
from blocks.kv.block_pool import NULL_BLOCK, BlockPool, OutOfBlocks
from blocks.kv.block_table import BlockTable
from blocks.kv.cache import KVCache, bytes_per_token
from blocks.kv.copy import copy_blocks, copy_blocks_work, swap_blocks, swap_blocks_work
from blocks.kv.prefix_cache import Prefix, PrefixCache
from blocks.kv.rope_write import rope_write_kv, rope_write_kv_work
from blocks.kv.scales import ScaleKind
from blocks.kv.usage import KVUsage
from blocks.kv.write import write_kv, write_kv_work

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
