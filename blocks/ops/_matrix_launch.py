"""Host side of the matrix kernels: allocate, choose tiles and grid, launch.

Nothing here looks at the contents of a tensor: no launch waits for the device, and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks.ops import _matrix_tiles as tiling
from blocks.ops._library import num_processors
from blocks.ops.quant import PACK, QuantizedRows, QuantizedWeight
from blocks.ops.routing import Routing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take."""
TILE = 1024
"""Columns of one program of the kernels that move rows."""
MAX_SPLITS = 16
"""Shares of the inputs that programs sum up side by side; each has at least four tiles."""


def quantize_rows(x: Tensor, format: str, width: int) -> QuantizedRows:
    """``quantize_rows`` in groups of ``width`` columns."""
    from blocks.ops._triton.quantize_rows import _quantize_rows_kernel

    kernel: Any = _quantize_rows_kernel
    x = _contiguous_rows(x)
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
    x, values = _contiguous_rows(x), _bytes(weight)
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


def grouped_linear(
    x: Tensor, weight: Tensor, offsets: Tensor, tokens: Tensor | None = None
) -> Tensor:
    """``grouped_linear``; row i is x[tokens[i]] where there are tokens."""
    from blocks.ops._triton.grouped_linear import _grouped_linear_kernel

    kernel: Any = _grouped_linear_kernel
    x = _contiguous_rows(x)
    num_rows = len(x) if tokens is None else len(tokens)
    num_groups, outputs, inputs = weight.shape
    y = x.new_empty(num_rows, outputs)
    if y.numel() == 0:
        return y
    average = -(-num_rows // max(num_groups, 1))
    tiles = tiling.choose(tiling.GROUPED, x.device, average, x.itemsize)
    slots = num_rows // tiles.rows + num_groups + 1
    programs = 2 * num_processors(x.device)
    kernel[(min(slots * -(-outputs // tiles.outs), programs),)](
        x,
        x.stride(0),
        tokens,
        weight,
        *weight.stride(),
        offsets,
        y,
        num_rows,
        num_groups,
        outputs,
        inputs,
        STEPS=num_groups.bit_length(),
        TILE_ROWS=tiles.rows,
        TILE_OUT=tiles.outs,
        TILE_IN=tiles.ins,
        **tiling.settings(x.dtype),
        **tiling.launch_options(tiles),
    )
    return y


def grouped_weight_grad(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """The gradient of the matrices: [num_groups, out_features, in_features]."""
    from blocks.ops._triton.grouped_linear import _grouped_weight_grad_kernel

    kernel: Any = _grouped_weight_grad_kernel
    x, dy = x.contiguous(), dy.contiguous()
    inputs, outputs, num_groups = x.shape[1], dy.shape[1], len(offsets) - 1
    dw = x.new_empty(num_groups, outputs, inputs)
    if dw.numel() == 0:
        return dw
    tiles = tiling.choose(tiling.GROUPED_WEIGHT, x.device, 0, x.itemsize)
    kernel[(-(-inputs // tiles.ins), -(-outputs // tiles.outs), num_groups)](
        x,
        dy,
        offsets,
        dw,
        outputs,
        inputs,
        TILE_ROWS=tiles.rows,
        TILE_OUT=tiles.outs,
        TILE_IN=tiles.ins,
        **tiling.settings(x.dtype),
        **tiling.launch_options(tiles),
    )
    return dw


def spread(x: Tensor, weights: Tensor | None, places: Tensor) -> Tensor:
    """Row places[t, i] of the result is x[t], times weights[t, i] where there are weights."""
    from blocks.ops._triton.moe import _spread_kernel

    x = x.contiguous()
    rows = x.new_empty(places.numel(), x.shape[1])
    return _move_rows(_spread_kernel, x, weights, places, rows)


def combine(rows: Tensor, weights: Tensor | None, places: Tensor) -> Tensor:
    """Result t is the sum of rows[places[t]], times weights[t] where there are weights."""
    from blocks.ops._triton.moe import _combine_kernel

    y = rows.new_empty(places.shape[0], rows.shape[1])
    return _move_rows(_combine_kernel, rows.contiguous(), weights, places, y)


def _move_rows(
    kernel: Any, source: Tensor, weights: Tensor | None, places: Tensor, target: Tensor
) -> Tensor:
    num_tokens, top_k = places.shape
    hidden_size = source.shape[1]
    if target.numel():
        kernel[(num_tokens, -(-hidden_size // TILE))](
            source,
            None if weights is None else weights.contiguous(),
            places.contiguous(),
            target,
            hidden_size,
            TOP_K=top_k,
            TILE=TILE,
        )
    return target


def route(
    logits: Tensor,
    top_k: int,
    *,
    scoring: str,
    normalize: bool,
    bias: Tensor | None,
    scale: float,
) -> Routing:
    """``route``: choose and count, add up the counts, place."""
    from blocks.ops._triton.route import _choose_kernel, _place_kernel, _scan_kernel

    choose_experts: Any = _choose_kernel
    scan: Any = _scan_kernel
    place: Any = _place_kernel
    logits = _contiguous_rows(logits)
    (num_tokens, num_experts), device = logits.shape, logits.device
    tile_experts = tiling.power_of_two(num_experts, 16)
    tile_tokens = route_tile(num_experts)
    num_tiles = -(-num_tokens // tile_tokens)
    ids = {"dtype": torch.int32, "device": device}
    routing = Routing(
        torch.empty((num_tokens, top_k), **ids),
        torch.empty((num_tokens, top_k), dtype=torch.float32, device=device),
        torch.empty(num_tokens * top_k, **ids),
        torch.empty((num_tokens, top_k), **ids),
        torch.empty(num_experts + 1, **ids),
    )
    if num_tokens == 0:
        routing.offsets.zero_()
        return routing
    counts, totals = torch.empty((num_tiles, num_experts), **ids), torch.empty(num_experts, **ids)
    choose_experts[(num_tiles,)](
        logits,
        logits.stride(0),
        None if bias is None else bias.contiguous(),
        routing.experts,
        routing.weights,
        counts,
        num_tokens,
        num_experts,
        scale,
        TOP_K=top_k,
        IS_SOFTMAX=scoring == "softmax",
        NORMALIZE=normalize,
        TILE_TOKENS=tile_tokens,
        TILE_EXPERTS=tile_experts,
        TILE_K=tiling.power_of_two(top_k),
    )
    scan[(-(-num_experts // 8),)](counts, totals, num_tiles, num_experts, TILE=128, TILE_EXPERTS=8)
    place[(num_tiles,)](
        routing.experts,
        counts,
        totals,
        routing.tokens,
        routing.places,
        routing.offsets,
        num_tokens,
        num_experts,
        TOP_K=top_k,
        TILE_TOKENS=tile_tokens,
        TILE_EXPERTS=tile_experts,
    )
    return routing


def route_tile(num_experts: int) -> int:
    """Tokens of one program of the routing kernels: 2048 scores, at least 8 tokens."""
    return max(8, min(64, 2048 // tiling.power_of_two(num_experts, 16)))


def _splits(programs: int, inputs: int, tile_in: int, device: torch.device) -> tuple[int, int]:
    """How many ways the inputs are shared, and how many each gets: at least four tiles."""
    tiles = max(1, -(-inputs // tile_in))
    wanted = -(-2 * num_processors(device) // programs)
    least = 4 if device.type == "cuda" else 1
    splits = max(1, min(wanted, tiles // least, MAX_SPLITS))
    share = -(-tiles // splits)
    return -(-tiles // share), share * tile_in


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _bytes(weight: QuantizedWeight) -> Tensor:
    values = weight.values.contiguous()
    return values.view(torch.uint8) if weight.format == "fp8" else values
