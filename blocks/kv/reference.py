"""The tensor operations of the cache, written to be read: one token, one block at a time."""

from jaxtyping import Float, Int64
from torch import Tensor


def write_kv(
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    key_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, "num_tokens"],
) -> None:
    """Write each token's key and value into its slot; slot -1 is skipped."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, slot % block_size] = key[token].to(key_cache.dtype)
            value_cache[slot // block_size, slot % block_size] = value[token].to(value_cache.dtype)


def copy_blocks(
    planes: Float[Tensor, "num_planes num_blocks *block"], pairs: list[tuple[int, int]]
) -> None:
    """Copy block ``source`` to block ``target`` in every plane, one pair after the other."""
    for source, target in pairs:
        planes[:, target] = planes[:, source].clone()
