"""What the kernels of attention are given: tensors as they read them, numbers and settings."""

import torch
from torch import Tensor

from blocks._launch import interpreted
from blocks.attention import _tiles
from blocks.attention._layout import DTYPES
from blocks.attention._options import Options
from blocks.attention._scales import Scales, scale_kind


def prepare(query: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values for a kernel: rows together, float8 as the chip can load it.

    Raises:
        TypeError: a dtype that no kernel takes.
        ValueError: heads too wide, or keys and values that would have to be copied.
    """
    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"query dtype: expected one of {names}, got {query.dtype}")
    if query.shape[-1] > 256:
        raise ValueError(
            f"head_dim: expected at most 256 with impl='triton', got {query.shape[-1]}"
        )
    if any(cache.stride(-1) != 1 for cache in caches):
        got = [cache.stride(-1) for cache in caches]
        raise ValueError(
            f"head_dim stride: expected 1 for keys and values, got {got}; call .contiguous() once"
        )
    return (contiguous_rows(query), *(stored(cache) for cache in caches))


def stored(cache: Tensor) -> Tensor:
    """The cache as the kernels load it: float8 as bytes where the chip does not know its format."""
    if cache.dtype != torch.float8_e4m3fn or _tiles.converts_float8(_tiles.chip(cache.device)):
        return cache
    return cache.view(torch.uint8)


def scale_kinds(scales: Scales, cache: Tensor) -> dict[str, str]:
    """What a scale of keys and of values belongs to, as kernels are specialised for."""
    return {"K_SCALE": scale_kind(scales.k, cache), "V_SCALE": scale_kind(scales.v, cache)}


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied where its last dimension is not together."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides(cache: Tensor) -> tuple[int, ...]:
    """Strides of block, slot and head; a packed tensor has no blocks."""
    return (0, *cache.stride()[:2]) if cache.dim() == 3 else cache.stride()[:3]


def numbers(options: Options) -> tuple[float, float, int]:
    """Scale, softcap and window."""
    return options.scale, options.softcap or 1.0, options.window or 0


def settings(query: Tensor, options: Options) -> dict[str, object]:
    """What every kernel is specialised for."""
    return {
        "HAS_WINDOW": options.window is not None,
        "HAS_SOFTCAP": options.softcap is not None,
        "HAS_SINKS": options.sinks is not None,
        "HAS_SLOPES": options.alibi_slopes is not None,
        "INTERPRET": interpreted(),
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
