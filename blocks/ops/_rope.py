"""The fast implementations of the rotary embedding and the operator with its gradient.

``blocks::rope`` keeps positions and table; the gradient of a rotation is the rotation back.
"""

import functools
from collections.abc import Callable
from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor

from blocks import _checks
from blocks._autograd import Operation
from blocks.ops._library import functions

TILE_PAIRS = 512
"""Pairs of dimensions one Triton program turns, over its heads."""


def native_rope(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    interleaved: bool,
    inplace: bool,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Query and key turned, or turned back with ``inverse``, in C++; positions are looked at."""
    read_query = query if query.stride(2) == 1 else query.contiguous()
    read_key = key if key.stride(2) == 1 else key.contiguous()
    query_out = None if inplace else query.new_empty(query.shape)
    key_out = None if inplace else key.new_empty(key.shape)
    positions, cos_sin = positions.long().contiguous(), cos_sin.contiguous()
    max_positions, rotary_dim = cos_sin.shape
    outside = _functions()[query.dtype](
        read_query.data_ptr(),
        *read_query.stride()[:2],
        query.shape[1],
        None if query_out is None else query_out.data_ptr(),
        read_key.data_ptr(),
        *read_key.stride()[:2],
        key.shape[1],
        None if key_out is None else key_out.data_ptr(),
        positions.data_ptr(),
        cos_sin.data_ptr(),
        positions.shape[0],
        max_positions,
        rotary_dim,
        query.shape[2],
        interleaved,
        -1.0 if inverse else 1.0,
    )
    if outside >= 0:
        raise outside_table(f"{int(positions[outside])} at token {outside}", max_positions)
    if query_out is not None and key_out is not None:
        return query_out, key_out
    return _written_back(query, read_query), _written_back(key, read_key)


def triton_rope(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    interleaved: bool,
    inplace: bool,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same by the Triton kernel, one launch for both; positions are trusted."""
    from blocks.ops._triton.rope import _rope_kernel

    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, half = key.shape[1], cos_sin.shape[1] // 2
    read = [x if x.stride(2) == 1 else x.contiguous() for x in (query, key)]
    contiguous = torch.contiguous_format
    written = [x if inplace else torch.empty_like(x, memory_format=contiguous) for x in read]
    tile_heads, tile_half, tile_rest = rope_tiles(half, 0 if inplace else head_dim - 2 * half)
    tiles = -(-num_heads // tile_heads) + -(-num_kv_heads // tile_heads)
    if num_tokens > 0:
        launch: Any = _rope_kernel[(num_tokens * tiles,)]
        launch(
            *(part for x in (*read, *written) for part in (x, *x.stride()[:2])),
            positions.contiguous(),
            cos_sin.contiguous(),
            num_heads,
            num_kv_heads,
            half,
            head_dim,
            INTERLEAVED=interleaved,
            INVERSE=inverse,
            TILE_HEADS=tile_heads,
            TILE_HALF=tile_half,
            TILE_REST=tile_rest,
        )
    if not inplace:
        return written[0], written[1]
    return _written_back(query, written[0]), _written_back(key, written[1])


def rope_tiles(half: int, num_rest: int) -> tuple[int, int, int]:
    """Heads, pairs and unturned dimensions of a Triton program's tile."""
    tile_half = 1 << (half - 1).bit_length()
    tile_heads = max(1, min(8, TILE_PAIRS // tile_half))
    return tile_heads, tile_half, 1 << (num_rest - 1).bit_length() if num_rest > 0 else 0


def _written_back(x: Tensor, written: Tensor) -> Tensor:
    return x if written is x else x.copy_(written)


def _run(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    interleaved: bool,
    inverse: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    rope = native_rope if impl == "native" else triton_rope
    return rope(query, key, positions, cos_sin, interleaved, False, inverse)


def _fake(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    interleaved: bool,
    inverse: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    query, key, positions, cos_sin, ctx.interleaved, ctx.inverse, ctx.impl = inputs
    ctx.save_for_backward(positions, cos_sin)
    ctx.shapes = query.shape, key.shape


def _gradients(
    ctx: Any, backward: Callable[..., Any], dquery: Tensor | None, dkey: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradient of a rotation is the rotation back."""
    if dquery is None and dkey is None:
        return (None,) * 7
    if dquery is None and dkey is not None:
        dquery = dkey.new_zeros(ctx.shapes[0])
    if dkey is None and dquery is not None:
        dkey = dquery.new_zeros(ctx.shapes[1])
    back = (ctx.interleaved, not ctx.inverse, ctx.impl)
    turned = backward(dquery, dkey, *ctx.saved_tensors, *back)
    return *turned, None, None, None, None, None


ROPE = Operation(
    "rope",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_run,
    fake_backward=_fake,
    gradients=_gradients,
)
"""query, key, positions, cos_sin, interleaved, inverse, impl to query and key."""


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., int]]:
    return functions("rope", "rope", "pnnnppnnnpppnnnnif", c_int64)


def outside_table(got: str, max_positions: int) -> ValueError:
    """What to raise for positions the table does not have."""
    hint = "make a longer table with rope_table"
    return _checks.fail("positions", f"within [0, {max_positions})", got, hint)
