"""Host side of the kernel of ``prefill`` and ``paged_extend``: allocate, tiles, grid, launch.

Nothing here looks at the contents of a tensor, so no launch waits for the device and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_tma, _tiles
from blocks.attention._call import Call
from blocks.attention.output import AttentionOutput


def attend(
    call: Call,
    *,
    causal: bool = True,
    return_lse: bool = False,
    batch_invariant: bool = False,
    form: str | None = None,
) -> Any:
    """``prefill`` (packed keys) and ``paged_extend``.

    ``form`` is the table's to choose: ``tma_ws`` for the packed calls ``_launch_tma.takes`` allows.
    With ``batch_invariant`` both operations have the same form and tiles, and one loop over the
    keys, whatever the call.
    """
    call = _arguments.prepare(call)
    query, key, value, block_table, *_ = call
    num_tokens, num_heads, head_dim = query.shape
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    lse = output.new_empty((num_tokens, num_heads), dtype=torch.float32) if return_lse else None
    if num_tokens and call.num_seqs:
        paged = block_table is not None
        if paged or batch_invariant or not _launch_tma.takes(query, key, value):
            form = "pointer"
        tiles = _tiles.choose_tiles(
            "extend" if paged or batch_invariant else "prefill",
            _tiles.chip(query.device),
            query.dtype,
            head_dim,
            num_heads // key.shape[-2],
            key.shape[1] if paged and not batch_invariant else None,
            key.dtype,
            form,
        )
        if tiles.form == "tma_ws":
            _launch_tma.prefill(call, tiles, output, lse, causal=causal)
        else:
            _launch(call, tiles, output, lse, causal=causal, batch_invariant=batch_invariant)
    return output if lse is None else AttentionOutput(output, lse)


def _launch(
    call: Call,
    tiles: _tiles.Tiles,
    output: Tensor,
    lse: Tensor | None,
    *,
    causal: bool,
    batch_invariant: bool,
) -> None:
    """The kernel in its pointer form."""
    from blocks.attention._triton.attend import _attend_kernel

    query, key, value, block_table, lens, cu_seqlens_q, options, scales = call
    num_tokens, num_heads, head_dim = query.shape
    num_seqs, num_kv_heads = call.num_seqs, key.shape[-2]
    group, paged = num_heads // num_kv_heads, block_table is not None
    table, block_size = (block_table, key.shape[1]) if paged else (lens, 1)  # packed: not read
    blocks = num_tokens // (tiles.q // group) + num_seqs
    strides, numbers = _arguments.strides(call), _arguments.numbers(options)
    launch(
        _attend_kernel,
        (blocks * num_kv_heads,),
        (query, key, value, table, lens, cu_seqlens_q, *scales, *options.per_head, output, lse),
        (num_seqs, num_heads, key.shape[0], *strides, *numbers),
        {
            **_arguments.sizes(head_dim, group, block_size, tiles),
            "PAGED": paged,
            **_arguments.scale_kinds(call),
            "CAUSAL": causal,
            "ALL_MASKED": batch_invariant,
            "HAS_LSE": lse is not None,
            **_arguments.settings(query, options),
        },
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
