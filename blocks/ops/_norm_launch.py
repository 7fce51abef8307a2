"""The fast implementations of the norms and of their gradients: C++ on a CPU, Triton elsewhere.

All take and fill contiguous tensors; what they share in meaning stands in ``_norm.py``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks import _checks
from blocks.ops._library import functions, num_processors

MAX_TILE = 32768
"""Widest row one Triton program holds [columns]."""
CHUNK_ROWS = 64
"""Rows whose part of the weight's gradient the CPU adds up in one go, whatever its threads."""
TILE_SUMS = 32
"""Columns of the weight's gradient that one Triton program adds up."""
TILE_PARTIALS = 128
"""Partial sums it reads at a time."""


def native_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    is_layer: bool,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and sum on the CPU; ``mean`` and ``rstd``, where given, are filled."""
    x, weight, residual = x.contiguous(), weight.contiguous(), _contiguous(residual)
    bias = _contiguous(bias)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    hidden_size = x.shape[-1]
    _forward_functions()[x.dtype](
        x.data_ptr(),
        _pointer(residual),
        weight.data_ptr(),
        _pointer(bias),
        y.data_ptr(),
        total.data_ptr(),
        _pointer(mean),
        _pointer(rstd),
        x.numel() // hidden_size if hidden_size else 0,
        hidden_size,
        eps,
        weight_offset,
        is_layer,
    )
    return y, total


def triton_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    is_layer: bool,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and sum by the Triton kernel; ``mean`` and ``rstd``, where given, are filled."""
    from blocks.ops._triton.norm import _norm_kernel

    hidden_size = x.shape[-1]
    ok = hidden_size <= MAX_TILE
    _checks.check(ok, "hidden size", f"at most {MAX_TILE} with impl='triton'", hidden_size)
    x, residual = x.contiguous(), _contiguous(residual)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if x.numel() == 0:
        return y, total
    num_rows = x.numel() // hidden_size
    tile_rows, tile_hidden, num_warps = norm_tiles(hidden_size)
    launch: Any = _norm_kernel[(-(-num_rows // tile_rows),)]
    launch(
        x,
        residual,
        weight.contiguous(),
        _contiguous(bias),
        y,
        None if residual is None else total,
        mean,
        rstd,
        num_rows,
        hidden_size,
        eps,
        weight_offset,
        IS_LAYER=is_layer,
        ROUND_FIRST=not is_layer and weight_offset == 0.0,
        TILE_ROWS=tile_rows,
        TILE_HIDDEN=tile_hidden,
        num_warps=num_warps,
    )
    return y, total


def norm_tiles(hidden_size: int) -> tuple[int, int, int]:
    """Rows and columns of a Triton program's tile, and its warps.

    Whole rows, several where they are short. Up to 8K columns a thread holds 16; wider rows give it
    64, because with 32 the compiler for sm_90 aims at 64 registers and spills.
    """
    tile_hidden = 1 << max(hidden_size - 1, 0).bit_length()
    tile_rows = max(1, min(16, 1024 // tile_hidden))
    num_warps = max(2, tile_hidden // (512 if tile_hidden <= 8192 else 2048))
    return tile_rows, tile_hidden, num_warps


class BackwardTiles(NamedTuple):
    """How the gradient's kernel goes through the rows.

    rows, hidden: of a tile; hidden covers the row.
    reread: take the tile from the cache a second time, where registers cannot hold it.
    num_stages: tiles on their way at once, plus one.
    num_warps: of a program.
    programs: per processor, as many as its registers have room for.
    """

    rows: int
    hidden: int
    reread: bool
    num_stages: int
    num_warps: int
    programs: int


def norm_backward_tiles(hidden_size: int) -> BackwardTiles:
    """Whole rows, several where they are short; a thread holds 16 columns, 32 of the widest."""
    hidden = 1 << max(hidden_size - 1, 0).bit_length()
    rows = max(1, min(32, 2048 // hidden))
    reread = hidden > 8192
    num_warps = max(4, min(16, hidden // 512))
    return BackwardTiles(rows, hidden, reread, 1 if reread else 2, num_warps, 16 // num_warps)


def native_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    dweight: Tensor,
    dbias: Tensor | None,
) -> Tensor:
    dx = torch.empty_like(x)
    hidden_size = x.shape[-1]
    num_rows = rstd.numel()
    partials = torch.empty(
        (2, -(-num_rows // CHUNK_ROWS), hidden_size), dtype=torch.float32, device=x.device
    )
    _backward_functions()[x.dtype](
        dy.data_ptr(),
        _pointer(dtotal),
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(mean),
        rstd.data_ptr(),
        dx.data_ptr(),
        dweight.data_ptr(),
        _pointer(dbias),
        partials.data_ptr(),
        num_rows,
        hidden_size,
        CHUNK_ROWS,
        weight_offset,
    )
    return dx


def triton_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    dweight: Tensor,
    dbias: Tensor | None,
) -> Tensor:
    from blocks.ops._triton.norm_backward import _norm_backward_kernel, _sum_partials_kernel

    dx = torch.empty_like(x)
    hidden_size, num_rows = x.shape[-1], rstd.numel()
    tiles = norm_backward_tiles(hidden_size)
    num_programs = min(-(-num_rows // tiles.rows), tiles.programs * num_processors(x.device))
    sums = [
        None if out is None else rstd.new_empty(num_programs, hidden_size)
        for out in (dweight, dbias)
    ]
    launch: Any = _norm_backward_kernel[(num_programs,)]
    launch(
        dy,
        dtotal,
        x,
        weight,
        mean,
        rstd,
        dx,
        *sums,
        num_rows,
        hidden_size,
        weight_offset,
        ROUND_FIRST=mean is None and weight_offset == 0.0,
        TILE_ROWS=tiles.rows,
        TILE_HIDDEN=tiles.hidden,
        REREAD=tiles.reread,
        NUM_STAGES=tiles.num_stages,
        num_warps=tiles.num_warps,
    )
    launch = _sum_partials_kernel[(-(-hidden_size // TILE_SUMS),)]
    tile = {"TILE_PARTIALS": TILE_PARTIALS, "TILE_HIDDEN": TILE_SUMS}
    for partials, out in zip(sums, (dweight, dbias), strict=True):
        if out is not None:
            launch(partials, out, num_programs, hidden_size, **tile)
    return dx


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _forward_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm", "norm", "ppppppppnnffi")


@functools.cache
def _backward_functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("norm_backward", "norm_backward", "ppppppppppnnnf")
