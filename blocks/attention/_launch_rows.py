"""Host side of the kernel for several query tokens over one context: trees, and shared prefixes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_decode, _launch_merge, _splits, _tiles
from blocks.attention._call import Call
from blocks.attention._splits import FIXED_SPLIT
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


def row_splits(call: Call, batch_invariant: bool) -> int:
    """Splits of each group's context, from shapes alone."""
    rows = -(-call.query.shape[0] // max(call.num_seqs, 1)) * call.group
    programs = call.num_seqs * call.num_kv_heads * -(-rows // MOST_ROWS)
    return _splits.num_splits(call, programs, rows, batch_invariant)


def rows_splits(
    call: Call,
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

    num_splits, num_tokens, num_heads, head_dim = outputs.shape
    num_blocks, block_size, num_kv_heads, _ = call.key.shape
    num_groups, group = call.num_seqs, num_heads // num_kv_heads
    if not num_tokens or not num_groups:
        return
    call = _arguments.prepare(call)
    query, key, *_, cu_seqlens_q, options, scales = call
    name, quantised = _tiles.chip(query.device), key.itemsize == 1
    rows = MOST_ROWS if batch_invariant else -(-num_tokens // num_groups) * group
    tiles = rows_tiles(name, head_dim, group, rows, query.itemsize, quantised)
    blocks = num_tokens // (tiles.q // group) + num_groups
    seen = starts, cu_seqlens_q, tree, ends
    strides, numbers = _arguments.strides(call), _arguments.numbers(options)
    counts = num_groups, num_tokens, num_heads, num_blocks, num_splits, FIXED_SPLIT
    launch(
        _rows_kernel,
        (blocks, num_kv_heads, num_splits),
        (*call.paged, *seen, *scales, *options.per_head, outputs, lses),
        (*counts, *strides, *numbers),
        {
            **_arguments.sizes(head_dim, group, block_size, tiles),
            **_arguments.scale_kinds(call),
            "FIXED_SPLITS": batch_invariant,
            "HAS_STARTS": starts is not None,
            "TREE": tree is not None,
            **_arguments.settings(query, options),
        },
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def tree_decode(
    call: Call,
    tree_mask: Tensor,
    *,
    num_splits: int | None,
    batch_invariant: bool,
    return_lse: bool,
) -> Any:
    """``tree_decode``: one launch over splits of the context, and one that merges them."""
    if num_splits is None:
        num_splits = row_splits(call, batch_invariant)
    outputs, lses = _launch_merge.empty_states(call, num_splits, wide=True)
    tree = tree_mask.contiguous()
    rows_splits(call, outputs, lses, batch_invariant=batch_invariant, tree=tree)
    state = _launch_merge.merge(outputs, lses, call.query.dtype)
    return state if return_lse else state.output


def cascade_decode(call: Call, prefixes: Sequence[Any], batch_invariant: bool) -> AttentionOutput:
    """``cascade_decode``: a launch for each level, one for what is left, and one merge of all."""
    from blocks.attention.cascade import levels, shared_lens

    shared = list(levels(call, prefixes))
    counts = [row_splits(level, batch_invariant) for level, *_ in shared]
    counts.append(_launch_decode.num_splits_of(call, batch_invariant))
    outputs, lses = _launch_merge.empty_states(call, sum(counts), wide=True)
    *parts, rest = zip(outputs.split(counts), lses.split(counts), strict=True)
    ends = call.seq_lens.contiguous()
    for (level, starts, _), part in zip(shared, parts, strict=True):
        rows_splits(level, *part, batch_invariant=batch_invariant, ends=ends, starts=starts)
    starts = shared_lens(prefixes, call.seq_lens)
    _launch_decode.decode_splits(call, *rest, batch_invariant=batch_invariant, starts=starts)
    return _launch_merge.merge(outputs, lses, call.query.dtype)
