"""What the kernels of attention are given: tensors as they read them, numbers and settings."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from blocks._launch import interpreted
from blocks.attention import _tiles
from blocks.attention._call import Call
from blocks.attention._layout import DTYPES
from blocks.attention._options import Options
from blocks.attention._scales import scale_kind


def check_query(query: Tensor) -> None:
    """Kernels take no float64."""
    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"query dtype: expected one of {names}, got {query.dtype}")


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Check what kernels ask of queries, keys and values.

    Raises:
        TypeError: a dtype that no kernel takes.
        ValueError: heads too wide, or keys and values that would have to be copied.
    """
    check_query(query)
    if query.shape[-1] > 256:
        raise ValueError(
            f"head_dim: expected at most 256 with impl='triton', got {query.shape[-1]}"
        )
    if key.stride(-1) != 1 or value.stride(-1) != 1:
        got = [key.stride(-1), value.stride(-1)]
        raise ValueError(
            f"head_dim stride: expected 1 for keys and values, got {got}; call .contiguous() once"
        )


def prepare(call: Call) -> Call:
    """The call as kernels read it, checked."""
    check_tensors(call.query, call.key, call.value)
    return readable(call)


def readable(call: Call) -> Call:
    """The call with its rows together, and float8 as the chip can load it."""
    query, key, value, block_table, seq_lens, cu_seqlens_q, options, scales = call
    return Call(
        contiguous_rows(query),
        stored(key),
        stored(value),
        None if block_table is None else contiguous_rows(block_table),
        seq_lens.contiguous(),
        None if cu_seqlens_q is None else cu_seqlens_q.contiguous(),
        options,
        scales,
    )


def stored(cache: Tensor) -> Tensor:
    """The cache as the kernels load it: float8 as bytes where the chip does not know its format."""
    if cache.dtype != torch.float8_e4m3fn or _tiles.converts_float8(_tiles.chip(cache.device)):
        return cache
    return cache.view(torch.uint8)


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied where its last dimension is not together."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides(call: Call) -> tuple[int, ...]:
    """Strides of the query's token and head, of block, slot and head of keys and of values (packed
    ones have no blocks), and of the table's row."""
    query, key, value, block_table, *_ = call
    of_query, of_key, of_value = query.stride()[:2], key.stride()[:-1], value.stride()[:-1]
    if block_table is None:
        return (*of_query, 0, *of_key, 0, *of_value, 0)
    return (*of_query, *of_key, *of_value, block_table.stride(0))


def numbers(options: Options) -> tuple[float, float, int]:
    """Scale, softcap and window."""
    return options.scale, options.softcap or 1.0, options.window or 0


@functools.cache
def sizes(head_dim: int, group: int, block_size: int, tiles: _tiles.Tiles) -> Mapping[str, int]:
    """Sizes of heads, blocks and tiles that kernels are compiled for."""
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "TILE_Q": tiles.q,
        "TILE_KV": tiles.kv,
        "TILE_D": _tiles.power_of_two(head_dim),
    }


def scale_kinds(call: Call) -> dict[str, str]:
    """What a scale of keys and of values belongs to, as kernels are specialised for."""
    k, v = call.scales
    return {"K_SCALE": scale_kind(k, call.key), "V_SCALE": scale_kind(v, call.value)}


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
