"""Scales of quantised keys and values: ``value = stored * scale``.

What a scale belongs to is told by its shape alone, so there is nothing to configure: one number,
one a key head, one a block and head, or one a token and head.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from blocks._checks import check_dtype, fail

QUANTISED = (torch.float8_e4m3fn, torch.int8)
KINDS = ("tensor", "head", "block", "token")


class Scales(NamedTuple):
    """Scales of the cached keys and values; None where values are stored as they are.

    k, v: float32, contiguous, of a shape ``scale_kind`` knows.
    """

    k: Tensor | None
    v: Tensor | None


NO_SCALES = Scales(None, None)


def scale_kind(scale: Tensor | None, cache: Tensor) -> str:
    """What one scale belongs to: ``tensor``, ``head``, ``block``, ``token``; ``none`` without.

    >>> scale_kind(torch.ones(2), torch.zeros(9, 16, 2, 64, dtype=torch.int8))
    'head'
    """
    if scale is None:
        return "none"
    num_blocks, block_size, num_kv_heads, _ = cache.shape
    shape = tuple(scale.shape)
    if shape in ((), (1,)):
        return "tensor"
    if shape == (num_kv_heads,):
        return "head"
    if shape == (num_blocks, num_kv_heads):
        return "block"
    return "token" if shape == (num_blocks, block_size, num_kv_heads) else ""


def view_scale(scale: Tensor, cache: Tensor) -> Tensor:
    """``scale`` seen a slot and head: [num_blocks, block_size, num_kv_heads]."""
    if scale.dim() == 2:
        scale = scale[:, None]
    return scale.expand(cache.shape[:3])


def dequantise(cache: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The values a whole cache stands for, in ``dtype``."""
    values = cache.to(dtype)
    return values if scale is None else values * view_scale(scale, cache)[..., None].to(dtype)


def resolve_scales(
    key_cache: Tensor, value_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> Scales:
    """Check scales against the caches they belong to."""
    if k_scale is None and v_scale is None and key_cache.dtype != torch.int8:
        return NO_SCALES
    check_scale("k_scale", k_scale, key_cache)
    check_scale("v_scale", v_scale, value_cache)
    return Scales(k_scale, v_scale)


def check_scale(name: str, scale: Tensor | None, cache: Tensor) -> None:
    """Check one scale against the cache it belongs to."""
    if scale is None:
        if cache.dtype == torch.int8:
            raise fail(name, "scales beside an int8 cache", None, "int8 alone spans -128 to 127")
        return
    if cache.dtype not in QUANTISED:
        names = " or ".join(str(dtype) for dtype in QUANTISED)
        raise fail(name, f"None beside a {cache.dtype} cache", "scales", f"they go with {names}")
    check_dtype(name, scale, (torch.float32,), "scales are kept in float32")
    if not scale_kind(scale, cache):
        num_blocks, block_size, num_kv_heads, _ = cache.shape
        shapes = f"[], [1], [{num_kv_heads}] (heads), [{num_blocks}, {num_kv_heads}] (blocks) or "
        shapes += f"[{num_blocks}, {block_size}, {num_kv_heads}] (tokens)"
        raise fail(f"{name} shape", shapes, list(scale.shape))
    if not scale.is_contiguous():
        raise fail(f"{name} strides", "contiguous", scale.stride(), "call .contiguous() once")
    if scale.device != cache.device:
        raise fail(f"{name} device", cache.device, scale.device, "move it with .to(device)")
