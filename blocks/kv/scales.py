"""Scales of a quantised cache: ``value = stored * scale``, what each shape means, how it rounds.

A scale belongs to the whole tensor, to a head, to a block and head, or to a token and head; its
number of dimensions says which. The first three are measured beforehand and only read. The last is
measured as tokens are written, and written beside them.
"""

from typing import Literal

import torch
from jaxtyping import Float32, Num
from torch import Tensor

from blocks._checks import check_dtype, check_shape, fail

ScaleKind = Literal["tensor", "head", "block", "token"]
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""Quantised cache dtypes and the largest magnitude each stores."""
SMALLEST = torch.finfo(torch.float32).tiny
"""Least scale there is: the reciprocal of a smaller one overflows."""


def scale_kind(
    name: str,
    scale: Float32[Tensor, "..."],
    cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
) -> ScaleKind:
    """What a scale belongs to, by its shape.

    ``[]`` or ``[1]``: the tensor. ``[num_kv_heads]``: each head. ``[num_blocks, num_kv_heads]``:
    each block and head. ``[num_blocks, block_size, num_kv_heads]``: each token and head.

    Raises:
        ValueError, TypeError: a shape that is none of these, or a dtype other than float32.
    """
    check_dtype(name, scale, (torch.float32,), "scales are float32")
    num_blocks, block_size, num_kv_heads, _ = cache.shape
    shape = tuple(scale.shape)
    if shape in ((), (1,)):
        return "tensor"
    if len(shape) == 1:
        check_shape(name, scale, (num_kv_heads,), "one scale, or one per head")
        return "head"
    if len(shape) == 2:
        check_shape(name, scale, (num_blocks, num_kv_heads), "one scale per block and head")
        return "block"
    hint = "one scale per token and head; see blocks.kv.scales for the other kinds"
    check_shape(name, scale, (num_blocks, block_size, num_kv_heads), hint)
    return "token"


def spread_scale(
    scale: Float32[Tensor, "..."],
    cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
) -> Float32[Tensor, "num_blocks block_size num_kv_heads"]:
    """A scale of any kind as one number per slot and head: a view, with strides of 0."""
    if scale.dim() == 2:
        scale = scale.unsqueeze(1)
    return scale.expand(cache.shape[:3])


def quantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``x / scale`` in the nearest value of ``dtype``, ties to even, saturated.

    Computed as ``x`` times the fp32 reciprocal of ``scale``, which broadcasts against ``x``. A NaN
    stays one in fp8; int8 has none, and stores 0.
    """
    limit = LIMITS[dtype]
    steps = (x.float() * scale.reciprocal()).clamp(-limit, limit)
    if dtype == torch.int8:
        steps = steps.nan_to_num(0.0).round()
    return steps.to(dtype)


def dequantise(
    cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    scale: Float32[Tensor, "..."],
) -> Float32[Tensor, "num_blocks block_size num_kv_heads head_dim"]:
    """What a quantised cache means: ``stored * scale`` in fp32."""
    return cache.float() * spread_scale(scale, cache).unsqueeze(-1)


def token_scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale that fits each row of ``x [..., head_dim]``: its largest magnitude at the limit.

    Rows of zeros get the least scale; an infinity counts as the largest finite number. A NaN makes
    the scale NaN, so that the row reads as NaN in either dtype.
    """
    largest = x.float().abs().amax(-1).clamp_max(torch.finfo(torch.float32).max)
    return (largest / LIMITS[dtype]).clamp_min(SMALLEST)


def checked_scales(
    cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Both scales of a quantised cache; None for another, which takes none.

    An fp8 cache without a scale has the scale 1; int8, which spans only -127 to 127, needs both.
    """
    found = []
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None and cache.dtype not in LIMITS:
            raise fail(name, f"None with a cache of {cache.dtype}", f"shape {list(scale.shape)}")
        if scale is None and cache.dtype == torch.int8:
            raise fail(name, f"a scale with a cache of {cache.dtype}", None)
        if scale is None:
            scale = torch.ones((), device=cache.device)
        else:
            scale_kind(name, scale, cache)
            if scale.device != cache.device:
                raise fail(name, f"a tensor on {cache.device}", scale.device, "move it with .to()")
        found.append(scale)
    return (found[0], found[1]) if cache.dtype in LIMITS else None
