"""The tensor operations of the cache, written to be read: one token, one block at a time."""

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int, Int64, Num
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


def rope_write_kv(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    positions: Int[Tensor, " num_tokens"],
    cos_sin: Float32[Tensor, "max_positions rotary_dim"],
    key_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, " num_tokens"],
    *,
    query_norm: Float[Tensor, " head_dim"] | None = None,
    key_norm: Float[Tensor, " head_dim"] | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    interleaved: bool = False,
    k_scale: Float32[Tensor, "..."] | None = None,
    v_scale: Float32[Tensor, "..."] | None = None,
) -> Float[Tensor, "num_tokens num_heads head_dim"]:
    """The separate operations in turn: norm of every head, rotation, write."""
    query, key = turned_heads(
        query, key, positions, cos_sin, query_norm, key_norm, eps, weight_offset, interleaved
    )
    caches = (key_cache, value_cache, slot_mapping)
    write_kv(key, value, *caches, k_scale=k_scale, v_scale=v_scale)
    return query


def turned_heads(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    weight_offset: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Query and key normed, where weights are given, and turned; new tensors."""
    if query_norm is not None and key_norm is not None:
        query = _normed(query, query_norm, eps, weight_offset)
        key = _normed(key, key_norm, eps, weight_offset)
    cos, sin = rearrange(cos_sin[positions], "token (half pair) -> half token 1 pair", half=2)
    return _turned(query, cos, sin, interleaved), _turned(key, cos, sin, interleaved)


def _normed(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight_offset == 0.0:  # rounded before it is multiplied by the weight
        return weight * scaled.to(x.dtype)
    return (scaled * (weight_offset + weight.float())).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    turning, rest = x[..., :rotary_dim].float(), x[..., rotary_dim:]
    layout = "token head (pair half)" if interleaved else "token head (half pair)"
    a, b = rearrange(turning, f"{layout} -> half token head pair", half=2)
    turned = rearrange([a * cos - b * sin, b * cos + a * sin], f"half token head pair -> {layout}")
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


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
