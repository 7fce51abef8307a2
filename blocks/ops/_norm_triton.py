"""The norms and their gradients by the Triton kernels: tiles, grids and launches.

What they mean stands in ``_norm.py``. The tiles are the same for all chips: chosen so that a thread
holds 16 columns, which no compiler spills; ``tests/ops/aot_cases.py`` holds them to it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks.ops._library import num_processors

MAX_TILE_BYTES = {"norm": 65536, "rms backward": 32768, "layer backward": 16384}
"""Widest row one program holds in one tile; wider ones go by a tile at a time (``is_wide``)."""
WIDE_TILE = 4096
"""Columns of a wide row at a time; a quarter of it where sums of columns stay in registers."""
TILE_SUMS = 32
"""Columns of the weight's gradient that one program adds up."""
TILE_PARTIALS = 128
"""Partial sums it reads at a time."""


class BackwardTiles(NamedTuple):
    """How the gradient's kernel goes through the rows.

    rows, hidden: of a tile; hidden covers the row.
    reread: take the tile from the cache a second time, where registers cannot hold it.
    num_stages: tiles on their way while one is computed, and that one.
    num_warps: of a program.
    programs: per processor, as many as its registers have room for.
    """

    rows: int
    hidden: int
    reread: bool
    num_stages: int
    num_warps: int
    programs: int


def is_wide(hidden_size: int, itemsize: int, what: str) -> bool:
    """Whether a row is too wide for one tile of ``what``, a key of ``MAX_TILE_BYTES``.

    Rows that are no multiple of 16 columns begin anywhere, are read an element at a time, and need
    registers for many more addresses.
    """
    limit = MAX_TILE_BYTES[what] // itemsize
    return hidden_size > (limit if hidden_size % 16 == 0 else limit // 4)


def norm_tiles(hidden_size: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps.

    Whole rows, several where they are short. Up to 8K columns a thread holds 16; wider rows give it
    64, because with 32 the compiler for sm_90 aims at 64 registers and spills.
    """
    tile_hidden = 1 << max(hidden_size - 1, 0).bit_length()
    tile_rows = max(1, min(16, 1024 // tile_hidden))
    num_warps = max(2, tile_hidden // (512 if tile_hidden <= 8192 else 2048))
    return tile_rows, tile_hidden, num_warps


def norm_backward_tiles(hidden_size: int, itemsize: int) -> BackwardTiles:
    """Whole rows, several where they are short; a thread holds 16 columns, 32 of the widest.

    Two further tiles are on their way where registers allow it: a processor of an H200 has to wait
    for some 30 KB at any time to keep its share of the memory busy.
    """
    hidden = 1 << max(hidden_size - 1, 0).bit_length()
    rows = max(1, min(32, 2048 // hidden))
    reread = hidden > 8192
    num_stages = 1 if reread else 2 if hidden * itemsize > 16384 else 3
    num_warps = max(4, min(16, hidden // 512))
    return BackwardTiles(rows, hidden, reread, num_stages, num_warps, 16 // num_warps)


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
    """Output and sum; ``mean`` and ``rstd``, where given, are filled."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if x.numel() == 0:
        return y, total
    hidden_size = x.shape[-1]
    num_rows = x.numel() // hidden_size
    bias = None if bias is None else bias.contiguous()
    written = (y, None if residual is None else total, mean, rstd)
    tensors = (x, residual, weight.contiguous(), bias, *written)
    order = {"IS_LAYER": is_layer, "ROUND_FIRST": not is_layer and weight_offset == 0.0}
    launch: Any
    if is_wide(hidden_size, x.element_size(), "norm"):
        from blocks.ops._triton.norm_wide import _wide_norm_kernel

        launch = _wide_norm_kernel[(num_rows,)]
        tile = {"TILE": WIDE_TILE, "num_warps": 8}
        launch(*tensors, hidden_size, eps, weight_offset, **order, **tile)
        return y, total
    from blocks.ops._triton.norm import _norm_kernel

    tile_rows, tile_hidden, num_warps = norm_tiles(hidden_size)
    launch = _norm_kernel[(-(-num_rows // tile_rows),)]
    launch(
        *tensors,
        num_rows,
        hidden_size,
        eps,
        weight_offset,
        **order,
        TILE_ROWS=tile_rows,
        TILE_HIDDEN=tile_hidden,
        num_warps=num_warps,
    )
    return y, total


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
    """Gradient of the rows; ``dweight`` and ``dbias`` are filled. All are contiguous."""
    dx = torch.empty_like(x)
    given = (dy, dtotal, x, weight, mean, rstd)
    what = "rms backward" if mean is None else "layer backward"
    if is_wide(x.shape[-1], x.element_size(), what):
        parts = _wide_backward(*given, weight_offset, dx, dbias is not None)
    else:
        parts = _backward(*given, weight_offset, dx, dbias is not None)
    for part, out in zip(parts, (dweight, dbias), strict=True):
        if part is not None and out is not None:
            _sum_parts(part, out)
    return dx


def _backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    dx: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """Fill dx; each program's part of the gradients of weight and bias."""
    from blocks.ops._triton.norm_backward import _norm_backward_kernel

    hidden_size, num_rows = x.shape[-1], rstd.numel()
    tiles = norm_backward_tiles(hidden_size, x.element_size())
    num_programs = min(-(-num_rows // tiles.rows), tiles.programs * num_processors(x.device))
    parts = _parts(num_programs, hidden_size, rstd, has_bias)
    launch: Any = _norm_backward_kernel[(num_programs,)]
    launch(
        *(dy, dtotal, x, weight, mean, rstd, dx, *parts),
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
    return parts


def _wide_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight_offset: float,
    dx: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same for rows beyond one tile: first two numbers a row, then tiles of columns."""
    from blocks.ops._triton.norm_wide import _wide_backward_kernel, _wide_row_sums_kernel

    hidden_size, num_rows = x.shape[-1], rstd.numel()
    projection, centre = torch.empty_like(rstd), None if mean is None else torch.empty_like(rstd)
    launch: Any = _wide_row_sums_kernel[(num_rows,)]
    read = (dy, x, weight, mean, rstd, projection, centre)
    launch(*read, hidden_size, weight_offset, TILE=WIDE_TILE, num_warps=8)
    tile = WIDE_TILE // 4
    num_tiles = -(-hidden_size // tile)
    num_programs = max(1, min(num_rows, 4 * num_processors(x.device) // num_tiles))
    parts = _parts(num_programs, hidden_size, rstd, has_bias)
    launch = _wide_backward_kernel[(num_programs, num_tiles)]
    launch(
        *(dy, dtotal, x, weight, mean, rstd, projection, centre, dx, *parts),
        num_rows,
        hidden_size,
        weight_offset,
        ROUND_FIRST=mean is None and weight_offset == 0.0,
        TILE=tile,
        NUM_STAGES=2,
        num_warps=4,
    )
    return parts


def _parts(
    num_programs: int, hidden_size: int, like: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    parts = like.new_empty(num_programs, hidden_size)
    return parts, torch.empty_like(parts) if has_bias else None


def _sum_parts(parts: Tensor, out: Tensor) -> None:
    from blocks.ops._triton.norm_backward import _sum_partials_kernel

    launch: Any = _sum_partials_kernel[(-(-out.numel() // TILE_SUMS),)]
    tile = {"TILE_PARTIALS": TILE_PARTIALS, "TILE_HIDDEN": TILE_SUMS}
    launch(parts, out, parts.shape[0], out.numel(), **tile)
