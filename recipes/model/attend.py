"""What the decoder calls for attention: ``(layer, query, key, value) -> output``.

The decoder knows nothing of masks, caches or kernels; it is handed one of these functions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.attention import paged_decode, paged_extend, prefill
from blocks.kv import KVCache, write_kv
from recipes.model.config import AttentionSpec, ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [num_tokens, num_heads, head_dim], key and value [num_tokens, num_kv_heads,
head_dim]) -> [num_tokens, num_heads, head_dim]. Query, key and value may be strided views."""


def dense_attend(config: ModelConfig, cu_seqlens: Tensor) -> Attend:
    """Causal attention inside each of several packed sequences; nothing is cached.

    Args:
        cu_seqlens: int32 [num_seqs + 1] running sums of the sequence lengths, from 0.
    """
    specs = attention_specs(config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return prefill(query, key, value, cu_seqlens, **specs[layer]._asdict())

    return attend


def batched_attend(config: ModelConfig, seq_len: int) -> Attend:
    """Causal attention inside consecutive runs of ``seq_len`` tokens: a training batch.

    Differentiable; without window and softcap ``torch.compile`` traces it whole, as no shape
    depends on data.
    """
    specs = attention_specs(config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        spec = specs[layer]
        if spec.window is not None or spec.softcap is not None:
            bounds = torch.arange(0, len(query) + 1, seq_len, dtype=torch.int32)
            return prefill(query, key, value, bounds.to(query.device), **spec._asdict())
        q, k, v = (t.unflatten(0, (-1, seq_len)).transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=spec.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def paged_attend(
    config: ModelConfig,
    cache: KVCache,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    slot_mapping: Tensor,
    *,
    first_layer: int = 0,
) -> Attend:
    """Attention of each sequence's new tokens over its pages, the new ones written first.

    A step may mix prompt chunks, decodes and, as writes precede reads in every layer, sequences
    that share a block one of them fills in this very step.

    Args:
        cache: pages of all layers, plain or quantised; written in place.
        block_table: int32 [num_seqs, max_blocks].
        seq_lens: int32 [num_seqs] context lengths, new tokens included.
        cu_seqlens_q: int32 [num_seqs + 1] running sums of the numbers of new tokens.
        slot_mapping: int64 [num_tokens] where each new token's key and value go; -1 for nowhere.
        first_layer: number of the layer whose pages come first in the cache.
    """
    specs, pages, scales = attention_specs(config), _pages(cache), _scales(cache)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = layer - first_layer
        keys, values = pages[2 * at : 2 * at + 2]
        k_scale, v_scale = scales[at]
        write_kv(key, value, keys, values, slot_mapping, k_scale=k_scale, v_scale=v_scale)
        scale, window, softcap = specs[layer]
        return paged_extend(
            query, keys, values, block_table, seq_lens, cu_seqlens_q,
            scale=scale, window=window, softcap=softcap, k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip

    return attend


def decode_attend(
    config: ModelConfig,
    cache: KVCache,
    block_table: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
) -> Attend:
    """``paged_attend`` of a step in which every sequence has exactly one new token."""
    specs, pages, scales = attention_specs(config), _pages(cache), _scales(cache)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = pages[2 * layer : 2 * layer + 2]
        k_scale, v_scale = scales[layer]
        write_kv(key, value, keys, values, slot_mapping, k_scale=k_scale, v_scale=v_scale)
        scale, window, softcap = specs[layer]
        return paged_decode(
            query, keys, values, block_table, seq_lens,
            scale=scale, window=window, softcap=softcap, k_scale=k_scale, v_scale=v_scale,
        )  # fmt: skip

    return attend


def attention_specs(config: ModelConfig) -> list[AttentionSpec]:
    """``config.attention`` of every layer."""
    return [config.attention(layer) for layer in range(config.num_layers)]


def _pages(cache: KVCache) -> tuple[Tensor, ...]:
    """Keys and values of layer 0, of layer 1, and so on: all views in one call."""
    return cache.storage.flatten(0, 1).unbind()


def _scales(cache: KVCache) -> list[tuple[Tensor | None, Tensor | None]]:
    """Scales of the keys and of the values of every layer; None where nothing is quantised."""
    return [(cache.key_scale(layer), cache.value_scale(layer)) for layer in range(cache.num_layers)]
