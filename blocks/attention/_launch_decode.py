"""Host side of the kernel of ``paged_decode``: allocate, splits, tiles, grid, launch.

Nothing here looks at the contents of a tensor, so no launch waits for the device and every one can
be captured in a graph.
"""

from typing import Any

from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_merge, _splits, _tiles
from blocks.attention._call import Call
from blocks.attention._splits import FIXED_SPLIT


def decode(
    call: Call,
    *,
    num_splits: int | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
) -> Any:
    """``paged_decode``: one launch over splits of the context, and one that merges them."""
    if num_splits is None:
        num_splits = num_splits_of(call, batch_invariant)
    wide = batch_invariant or num_splits > 1
    outputs, lses = _launch_merge.empty_states(call, num_splits, wide)
    decode_splits(call, outputs, lses, batch_invariant=batch_invariant)
    state = _launch_merge.merge_splits(outputs, lses, call.query.dtype)
    return state if return_lse else state.output


def decode_splits(
    call: Call,
    outputs: Tensor,
    lses: Tensor,
    *,
    batch_invariant: bool,
    starts: Tensor | None = None,
) -> None:
    """Fill ``outputs`` and ``lses`` with one state a split; positions before ``starts`` are left
    to others. The output of a split with LSE -inf is not written, unless it is the only one."""
    from blocks.attention._triton.decode import _paged_decode_kernel

    call = _arguments.prepare(call)
    query, key, *_, options, scales = call
    num_splits, num_seqs, num_heads, head_dim = outputs.shape
    num_blocks, block_size, num_kv_heads, _ = key.shape
    group = num_heads // num_kv_heads
    if num_seqs == 0:
        return
    chip = _tiles.chip(query.device)
    kind = query.dtype, head_dim, group, block_size, key.dtype
    tiles = _tiles.choose_tiles("decode", chip, *kind)
    strides, numbers = _arguments.strides(call), _arguments.numbers(options)
    launch(
        _paged_decode_kernel,
        (num_seqs, num_kv_heads, num_splits),
        (*call.paged, starts, *scales, *options.per_head, outputs, lses),
        (num_seqs, num_heads, num_blocks, num_splits, FIXED_SPLIT, *strides, *numbers),
        {
            **_arguments.sizes(head_dim, group, block_size, tiles),
            **_arguments.scale_kinds(call),
            "FIXED_SPLITS": batch_invariant,
            "HAS_STARTS": starts is not None,
            **_arguments.settings(query, options),
        },
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def num_splits_of(call: Call, batch_invariant: bool) -> int:
    """How many splits of the context keep the device busy; with ``batch_invariant`` those of a
    fixed length that the table can hold."""
    programs = call.num_seqs * call.num_kv_heads
    return _splits.num_splits(call, programs, call.group, batch_invariant)
