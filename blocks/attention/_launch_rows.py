"""Host side of the kernel for several query tokens over one context: trees, and shared prefixes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_decode, _launch_merge, _tiles
from blocks.attention._options import Options
from blocks.attention._scales import Scales
from blocks.attention._splits import FIXED_SPLIT, choose_num_splits, num_fixed_splits
from blocks.attention.output import AttentionOutput

MOST_ROWS = 64
"""Rows of a tile; more of them share a tile of keys no better, but leave fewer programs."""


def rows_tiles(
    name: str, head_dim: int, group: int, rows: int, itemsize: int, quantised: bool
) -> _tiles.Tiles:
    """Tiles for ``rows`` (queries x heads) that share a context: a decode's, with more rows."""
    if name == "cpu":
        return _tiles.decode_tiles(name, head_dim, group, itemsize)
    wide = _tiles.power_of_two(head_dim) * itemsize // 2
    most = 32 if wide > (128 if name.startswith("gfx") else 256) else MOST_ROWS
    q = max(_tiles.power_of_two(group), min(_tiles.power_of_two(rows), most))
    if name.startswith("gfx"):
        return _tiles.Tiles(q, 32 if q == 16 and wide <= 128 else 16, 8 if q > 32 else 4, 1)
    tiles = _tiles.decode_tiles(name, head_dim, group, itemsize, quantised)
    kv = min(tiles.kv, 32) if q >= 64 and name != "sm_90" else tiles.kv
    return tiles._replace(q=q, kv=kv, warps=8 if q >= 32 else 4)


def row_splits(
    query: Tensor,
    key_cache: Tensor,
    num_groups: int,
    capacity: int,
    *,
    batch_invariant: bool,
) -> int:
    """Splits of each group's context, from shapes alone."""
    if batch_invariant:
        return num_fixed_splits(capacity)
    num_kv_heads = key_cache.shape[2]
    group = query.shape[1] // num_kv_heads
    tokens = -(-query.shape[0] // max(num_groups, 1))
    rows = tokens * group
    return choose_num_splits(
        num_groups * num_kv_heads * -(-rows // MOST_ROWS),
        capacity,
        _tiles.num_processors(query.device),
        rows=rows,
        head_dim=query.shape[2],
        kv_itemsize=key_cache.itemsize,
    )


def rows_splits(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    lens: Tensor,
    cu_seqlens_q: Tensor,
    options: Options,
    scales: Scales,
    outputs: Tensor,
    lses: Tensor,
    *,
    batch_invariant: bool,
    tree: Tensor | None = None,
    ends: Tensor | None = None,
    starts: Tensor | None = None,
) -> None:
    """Fill ``outputs`` and ``lses`` with one state a split.

    Either ``tree`` (draft tokens of sequences) or ``ends`` (one past where each query sits, of
    groups of sequences whose context is in the table row of the first). The output of a state with
    LSE -inf is not written.
    """
    from blocks.attention._triton.rows import _rows_kernel

    num_tokens, num_heads, head_dim = query.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    num_groups = cu_seqlens_q.shape[0] - 1
    if not num_tokens or not num_groups:
        return
    kinds, quantised = _arguments.scale_kinds(scales, key_cache), key_cache.itemsize == 1
    query, key_cache, value_cache = _arguments.prepare(query, key_cache, value_cache)
    block_table = _arguments.contiguous_rows(block_table)
    group = num_heads // num_kv_heads
    name = _tiles.chip(query.device)
    rows = MOST_ROWS if batch_invariant else -(-num_tokens // num_groups) * group
    tiles = rows_tiles(name, head_dim, group, rows, query.itemsize, quantised)
    blocks = num_tokens // (tiles.q // group) + num_groups
    launch(
        _rows_kernel,
        (blocks, num_kv_heads, outputs.shape[0]),
        (
            query,
            key_cache,
            value_cache,
            block_table,
            lens.contiguous(),
            starts,
            cu_seqlens_q.contiguous(),
            tree,
            ends,
            scales.k,
            scales.v,
            options.sinks,
            options.alibi_slopes,
            outputs,
            lses,
        ),
        (
            num_groups,
            num_tokens,
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
            "TREE": tree is not None,
            **_arguments.settings(query, options),
        },
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def tree_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    tree_mask: Tensor,
    options: Options,
    scales: Scales,
    *,
    num_splits: int | None,
    batch_invariant: bool,
    return_lse: bool,
) -> Any:
    """``tree_decode``: one launch over splits of the context, and one that merges them."""
    if num_splits is None:
        capacity = block_table.shape[1] * key_cache.shape[1]
        num_splits = row_splits(
            query, key_cache, block_table.shape[0], capacity, batch_invariant=batch_invariant
        )
    outputs, lses = _launch_decode.partial_states(query, num_splits, True)
    rows_splits(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        cu_seqlens_q,
        options,
        scales,
        outputs,
        lses,
        batch_invariant=batch_invariant,
        tree=tree_mask.contiguous(),
    )
    state = _launch_merge.merge(outputs, lses, query.dtype)
    return state if return_lse else state.output


def cascade_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    prefixes: Sequence[Any],
    options: Options,
    scales: Scales,
    batch_invariant: bool,
) -> AttentionOutput:
    """``cascade_decode``: a launch for each level, one for what is left, and one merge of all."""
    from blocks.attention.cascade import levels, shared_lens

    cache = key_cache, value_cache
    capacity = block_table.shape[1] * key_cache.shape[1]
    counts = [
        row_splits(query, key_cache, len(prefix.lens), capacity, batch_invariant=batch_invariant)
        for prefix in prefixes
    ]
    counts.append(_launch_decode.num_splits_of(query, key_cache, block_table, batch_invariant))
    outputs, lses = _launch_decode.partial_states(query, sum(counts), True)
    alone = options._replace(sinks=None)  # the sink joins once, with the rest
    at = 0
    for count, (prefix, starts, _) in zip(counts, levels(prefixes, seq_lens), strict=False):
        rows_splits(
            query,
            *cache,
            block_table,
            prefix.lens,
            prefix.cu_groups,
            alone,
            scales,
            outputs[at : at + count],
            lses[at : at + count],
            batch_invariant=batch_invariant,
            ends=seq_lens.contiguous(),
            starts=starts,
        )
        at += count
    _launch_decode.decode_splits(
        query,
        *cache,
        block_table,
        seq_lens,
        options,
        scales,
        outputs[at:],
        lses[at:],
        batch_invariant=batch_invariant,
        starts=shared_lens(prefixes, seq_lens),
    )
    return _launch_merge.merge(outputs, lses, query.dtype)
