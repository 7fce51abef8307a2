"""Host side of the kernels of quantised products: allocate, choose tiles and grid, launch.

Nothing here looks at the contents of a tensor: no launch waits for the device, and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks.ops import _matrix_tiles as tiling
from blocks.ops._library import contiguous_rows, num_processors
from blocks.ops.quant import PACK, QuantizedRows, QuantizedWeight

TILE = 1024
"""Results of one program that adds up splits."""
MAX_SPLITS = 16
"""Shares of the inputs that programs sum up side by side; each has at least four tiles."""


def quantize_rows(x: Tensor, format: str, width: int) -> QuantizedRows:
    """``quantize_rows`` in groups of ``width`` columns."""
    from blocks.ops._triton.quantize_rows import _quantize_rows_kernel

    kernel: Any = _quantize_rows_kernel
    x = contiguous_rows(x)
    num_rows, num_columns = x.shape
    num_groups = -(-num_columns // width)
    dtype = torch.int8 if format == "int8" else torch.float8_e4m3fn
    values = torch.empty((num_rows, num_columns), dtype=dtype, device=x.device)
    scales = torch.empty((num_rows, num_groups), dtype=torch.float32, device=x.device)
    if scales.numel():
        kernel[(num_rows, num_groups)](
            x,
            x.stride(0),
            values if format == "int8" else values.view(torch.uint8),
            scales,
            num_columns,
            num_groups,
            width,
            IS_INT8=format == "int8",
            TILE=min(tiling.power_of_two(width), 4096),
        )
    return QuantizedRows(values, scales, width)


def decode_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """``quant_linear`` of rows as they are: [num_rows, in_features] to [num_rows, outputs]."""
    from blocks.ops._triton.quant_linear import _decode_linear_kernel, _sum_splits_kernel

    kernel: Any = _decode_linear_kernel
    sum_splits: Any = _sum_splits_kernel
    x, values = contiguous_rows(x), _bytes(weight)
    (num_rows, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(num_rows, outputs)
    if y.numel() == 0:
        return y
    tiles = tiling.choose(tiling.DECODE, x.device, num_rows, x.itemsize)
    columns = 0 if weight.scales.shape[1] <= 1 else weight.group[1]
    tile_in = tiles.ins if columns % tiles.ins == 0 else PACK
    blocks = (-(-outputs // tiles.outs), -(-num_rows // tiles.rows))
    splits, split_size = _splits(blocks[0] * blocks[1], inputs, tile_in, x.device)
    parts = y if splits == 1 else x.new_empty((splits, *y.shape), dtype=torch.float32)
    kernel[(*blocks, splits)](
        x,
        x.stride(0),
        values,
        values.stride(0),
        weight.scales if weight.scales.numel() else weight.scales.new_zeros(1),
        weight.zeros,
        bias,
        parts,
        num_rows,
        inputs,
        outputs,
        weight.scales.shape[1],
        split_size,
        FORMAT=weight.format,
        GROUP_ROWS=weight.group[0],
        GROUP_COLUMNS=columns,
        TILE_ROWS=tiles.rows,
        TILE_OUT=tiles.outs,
        TILE_IN=tile_in,
        **tiling.settings(x.dtype),
        **tiling.launch_options(tiles),
    )
    if splits > 1:
        grid = (-(-y.numel() // TILE),)
        sum_splits[grid](parts, y, y.numel(), splits, TILE=TILE)
    return y


def scaled_linear(
    rows: QuantizedRows, weight: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``quant_linear`` of rounded rows."""
    from blocks.ops._triton.quant_linear import _scaled_linear_kernel

    kernel: Any = _scaled_linear_kernel
    (num_rows, inputs), outputs = rows.values.shape, weight.shape[0]
    device = rows.values.device
    y = torch.empty((num_rows, outputs), dtype=dtype, device=device)
    if y.numel() == 0 or inputs == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    format = weight.format
    if format == "fp8" and tiling.chip(device) != "sm_90":
        format = "bytes"
    table = tiling.SCALED_BYTES if format == "bytes" else tiling.SCALED
    tiles = tiling.choose(table, device, num_rows)
    columns = 0 if weight.scales.shape[1] <= 1 else weight.group[1]
    x, w = rows.values, weight.values.contiguous()
    if format == "bytes":
        x, w = x.view(torch.uint8), w.view(torch.uint8)
    kernel[(-(-num_rows // tiles.rows) * -(-outputs // tiles.outs),)](
        x,
        rows.scales,
        w,
        weight.scales,
        bias,
        y,
        num_rows,
        inputs,
        outputs,
        weight.scales.shape[1],
        FORMAT=format,
        GROUP_ROWS=weight.group[0],
        GROUP_COLUMNS=columns,
        TILE_ROWS=tiles.rows,
        TILE_OUT=tiles.outs,
        TILE_IN=tiles.ins if columns % tiles.ins == 0 else PACK,
        TILES_TOGETHER=8,
        INTERPRET=tiling.interpreted(),
        **tiling.launch_options(tiles),
    )
    return y


def _splits(programs: int, inputs: int, tile_in: int, device: torch.device) -> tuple[int, int]:
    """How many ways the inputs are shared, and how many each gets: at least four tiles."""
    tiles = max(1, -(-inputs // tile_in))
    wanted = -(-2 * num_processors(device) // programs)
    least = 4 if device.type == "cuda" else 1
    splits = max(1, min(wanted, tiles // least, MAX_SPLITS))
    share = -(-tiles // splits)
    return -(-tiles // share), share * tile_in


def _bytes(weight: QuantizedWeight) -> Tensor:
    values = weight.values.contiguous()
    return values.view(torch.uint8) if weight.format == "fp8" else values
