"""Paged batches with quantised caches, and the same batch with the values they stand for."""

import dataclasses

import torch
from torch import Tensor

from blocks.attention._scales import dequantise
from tests.attention.paged_case import PagedCase, paged_case

KINDS = ("tensor", "head", "block", "token")
STORED = (torch.float8_e4m3fn, torch.int8)


def scale_shape(kind: str, cache: Tensor) -> tuple[int, ...]:
    num_blocks, block_size, num_kv_heads, _ = cache.shape
    return {
        "tensor": (),
        "head": (num_kv_heads,),
        "block": (num_blocks, num_kv_heads),
        "token": (num_blocks, block_size, num_kv_heads),
    }[kind]


def quantise(case: PagedCase, stored: torch.dtype, k_kind: str, v_kind: str, seed: int = 0):
    """The case with caches in ``stored``, their scales, and the case with what they stand for.

    What no query may read is NaN in a float8 cache, and NaN in scales of tokens and blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    caches, scales, wide = [], [], []
    for cache, kind in ((case.key_cache, k_kind), (case.value_cache, v_kind)):
        used = ~cache[..., 0].isnan()  # [num_blocks, block_size, num_kv_heads]
        scale = 0.005 + 0.02 * torch.rand(scale_shape(kind, cache), generator=generator)
        steps = cache.float().nan_to_num() / dequantise(
            torch.ones_like(cache), scale, torch.float32
        )
        if stored == torch.int8:
            numbers = steps.round().clamp(-128, 127).to(torch.int8)
        else:
            numbers = torch.where(used[..., None], steps.clamp(-448, 448), float("nan")).to(stored)
        wide.append(dequantise(numbers, scale, torch.float32))
        if kind == "token":
            scale = torch.where(used, scale, float("nan"))
        if kind == "block":
            scale = torch.where(used.any(1), scale, float("nan"))
        caches.append(numbers.to(cache.device))
        scales.append(scale.to(cache.device))
    narrow = dataclasses.replace(case, key_cache=caches[0], value_cache=caches[1])
    meant = dataclasses.replace(
        case, query=case.query.float(), key_cache=wide[0], value_cache=wide[1]
    )
    return narrow, {"k_scale": scales[0], "v_scale": scales[1]}, meant


def quantised_case(
    query_lens, seq_lens, stored=torch.int8, k_kind="token", v_kind="token", **shape
):
    """``quantise`` of ``paged_case``."""
    return quantise(paged_case(query_lens, seq_lens, **shape), stored, k_kind, v_kind)
