"""Host side of the kernels of experts: routing, rows moved, and products group by group.

Nothing here looks at the contents of a tensor: no launch waits for the device, and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks.ops import _matrix_tiles as tiling
from blocks.ops._library import contiguous_rows, num_processors
from blocks.ops.routing import Routing

TILE = 1024
"""Columns of one program of the kernels that move rows."""


def grouped_linear(
    x: Tensor, weight: Tensor, offsets: Tensor, tokens: Tensor | None = None
) -> Tensor:
    """``grouped_linear``; row i is x[tokens[i]] where there are tokens."""
    from blocks.ops._triton.grouped_linear import _grouped_linear_kernel

    kernel: Any = _grouped_linear_kernel
    x = contiguous_rows(x)
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
    logits = contiguous_rows(logits)
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
