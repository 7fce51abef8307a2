"""Host side of the kernel of ``paged_decode``: allocate, splits, tiles, grid, launch.

Nothing here looks at the contents of a tensor, so no launch waits for the device and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_merge, _tiles
from blocks.attention._options import Options
from blocks.attention._scales import NO_SCALES, Scales
from blocks.attention._splits import FIXED_SPLIT, choose_num_splits, num_fixed_splits
from blocks.attention.output import AttentionOutput


def decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    options: Options,
    scales: Scales = NO_SCALES,
    *,
    num_splits: int | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
) -> Any:
    """``paged_decode``: one launch over splits of the context, and one that merges them."""
    if num_splits is None:
        num_splits = num_splits_of(query, key_cache, block_table, batch_invariant)
    outputs, lses = partial_states(query, num_splits, batch_invariant or num_splits > 1)
    decode_splits(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        options,
        scales,
        outputs,
        lses,
        batch_invariant=batch_invariant,
    )
    if outputs.dtype == query.dtype and num_splits == 1:
        state = AttentionOutput(outputs[0], lses[0])
    else:
        state = _launch_merge.merge(outputs, lses, query.dtype)
    return state if return_lse else state.output


def decode_splits(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    options: Options,
    scales: Scales,
    outputs: Tensor,
    lses: Tensor,
    *,
    batch_invariant: bool,
    starts: Tensor | None = None,
) -> None:
    """Fill ``outputs`` and ``lses`` with one state a split; positions before ``starts`` are left
    to others. The output of a split with LSE -inf is not written, unless it is the only one."""
    from blocks.attention._triton.decode import _paged_decode_kernel

    num_seqs, num_heads, head_dim = query.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    kinds = _arguments.scale_kinds(scales, key_cache)
    query, key_cache, value_cache = _arguments.prepare(query, key_cache, value_cache)
    block_table = _arguments.contiguous_rows(block_table)
    group = num_heads // num_kv_heads
    tiles = _tiles.choose_tiles(
        "decode",
        _tiles.chip(query.device),
        query.dtype,
        head_dim,
        group,
        block_size,
        key_cache.dtype,
    )
    if num_seqs:
        launch(
            _paged_decode_kernel,
            (num_seqs, num_kv_heads, outputs.shape[0]),
            (
                query,
                key_cache,
                value_cache,
                block_table,
                seq_lens.contiguous(),
                starts,
                scales.k,
                scales.v,
                options.sinks,
                options.alibi_slopes,
                outputs,
                lses,
            ),
            (
                num_seqs,
                num_heads,
                key_cache.shape[0],
                outputs.shape[0],
                FIXED_SPLIT,
                *query.stride()[:2],
                *_arguments.strides(key_cache),
                *_arguments.strides(value_cache),
                block_table.stride(0),
                *_arguments.numbers(options),
            ),
            {
                "GROUP": group,
                "HEAD_DIM": head_dim,
                "BLOCK_SIZE": block_size,
                "TILE_Q": tiles.q,
                "TILE_KV": tiles.kv,
                "TILE_D": _tiles.power_of_two(head_dim),
                **kinds,
                "FIXED_SPLITS": batch_invariant,
                "HAS_STARTS": starts is not None,
                **_arguments.settings(query, options),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )


def partial_states(query: Tensor, num_states: int, wide: bool) -> tuple[Tensor, Tensor]:
    """Memory for states to be merged; in float32 where ``wide``, else as the query."""
    shape = (num_states, *query.shape[:2])
    dtype = torch.float32 if wide else query.dtype
    outputs = torch.empty((*shape, query.shape[2]), dtype=dtype, device=query.device)
    return outputs, torch.empty(shape, dtype=torch.float32, device=query.device)


def num_splits_of(
    query: Tensor, key_cache: Tensor, block_table: Tensor, batch_invariant: bool
) -> int:
    """How many splits of the context keep the device busy; with ``batch_invariant`` those of a
    fixed length that the table can hold."""
    _, block_size, num_kv_heads, head_dim = key_cache.shape
    capacity = block_table.shape[1] * block_size
    if batch_invariant:
        return num_fixed_splits(capacity)
    return choose_num_splits(
        block_table.shape[0] * num_kv_heads,
        capacity,
        _tiles.num_processors(query.device),
        rows=query.shape[1] // num_kv_heads,
        head_dim=head_dim,
        kv_itemsize=key_cache.itemsize,
    )
