"""The tensor operations of the cache, written to be read: one token, one block at a time."""

from jaxtyping import Float, Float32, Int64, Num
from torch import Tensor

from blocks.kv.scales import quantise, scale_kind, spread_scale, token_scale


def write_kv(
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    key_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, "num_tokens"],
    *,
    k_scale: Float32[Tensor, "..."] | None = None,
    v_scale: Float32[Tensor, "..."] | None = None,
) -> None:
    """Write each token's key and value into its slot; slot -1 is skipped."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            at = slot // block_size, slot % block_size
            _write_token(key[token], key_cache, k_scale, at)
            _write_token(value[token], value_cache, v_scale, at)


def _write_token(new: Tensor, cache: Tensor, scale: Tensor | None, at: tuple[int, int]) -> None:
    """One token's ``[num_kv_heads, head_dim]``; a scale per token is measured and written too."""
    if scale is None:
        cache[at] = new.to(cache.dtype)
        return
    if scale_kind("scale", scale, cache) == "token":
        scale[at] = token_scale(new, cache.dtype)
    cache[at] = quantise(new, spread_scale(scale, cache)[at].unsqueeze(-1), cache.dtype)


def copy_blocks(
    planes: Num[Tensor, "num_planes num_blocks *block"],
    pairs: list[tuple[int, int]],
    *,
    scales: Float32[Tensor, "num_planes num_blocks *scales"] | None = None,
) -> None:
    """Copy block ``source`` to block ``target`` in every plane, one pair after the other."""
    for source, target in pairs:
        for copied in (planes, scales):
            if copied is not None:
                copied[:, target] = copied[:, source].clone()


def swap_blocks(
    source: Num[Tensor, "num_planes num_source_blocks *block"],
    target: Num[Tensor, "num_planes num_target_blocks *block"],
    pairs: list[tuple[int, int]],
    *,
    source_scales: Float32[Tensor, "num_planes num_source_blocks *scales"] | None = None,
    target_scales: Float32[Tensor, "num_planes num_target_blocks *scales"] | None = None,
) -> None:
    """Copy blocks of one cache into blocks of another, in every plane, one pair after the other."""
    for from_block, to_block in pairs:
        target[:, to_block] = source[:, from_block].to(target.device)
        if source_scales is not None and target_scales is not None:
            target_scales[:, to_block] = source_scales[:, from_block].to(target.device)
