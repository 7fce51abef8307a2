"""Host side of the kernel of ``prefill`` and ``paged_extend``: allocate, tiles, grid, launch.

Nothing here looks at the contents of a tensor, so no launch waits for the device and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _launch_tma, _tiles
from blocks.attention._options import Options
from blocks.attention._scales import NO_SCALES, Scales
from blocks.attention.output import AttentionOutput


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_table: Tensor | None,
    lens: Tensor,
    cu_seqlens_q: Tensor,
    options: Options,
    scales: Scales = NO_SCALES,
    *,
    causal: bool = True,
    return_lse: bool = False,
    batch_invariant: bool = False,
    form: str | None = None,
) -> Any:
    """``prefill`` (no block_table; ``lens`` are running sums) and ``paged_extend``.

    ``form`` is the table's to choose: ``tma_ws`` for the packed calls ``_launch_tma.takes`` allows.
    With ``batch_invariant`` both operations have the same form and tiles, and one loop over the
    keys, whatever the call.
    """
    from blocks.attention._triton.attend import _attend_kernel

    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[-2]
    group, paged = num_heads // num_kv_heads, block_table is not None
    kinds = _arguments.scale_kinds(scales, key)
    query, key, value = _arguments.prepare(query, key, value)
    block_table = None if block_table is None else _arguments.contiguous_rows(block_table)
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    lse = output.new_empty((num_tokens, num_heads), dtype=torch.float32) if return_lse else None
    num_seqs = cu_seqlens_q.shape[0] - 1
    if num_tokens and num_seqs:
        if paged or batch_invariant or not _launch_tma.takes(query, key, value):
            form = "pointer"
        tiles = _tiles.choose_tiles(
            "extend" if paged or batch_invariant else "prefill",
            _tiles.chip(query.device),
            query.dtype,
            head_dim,
            group,
            key.shape[1] if paged and not batch_invariant else None,
            key.dtype,
            form,
        )
        if tiles.form == "tma_ws":
            tensors = query, key, value, lens, cu_seqlens_q
            _launch_tma.prefill(*tensors, options, tiles, output, lse, causal=causal)
            return output if lse is None else AttentionOutput(output, lse)
        blocks = num_tokens // (tiles.q // group) + num_seqs
        launch(
            _attend_kernel,
            (blocks * num_kv_heads,),
            (
                query,
                key,
                value,
                lens if block_table is None else block_table,
                lens.contiguous(),
                cu_seqlens_q.contiguous(),
                scales.k,
                scales.v,
                options.sinks,
                options.alibi_slopes,
                output,
                lse,
            ),
            (
                num_seqs,
                num_heads,
                key.shape[0],
                *query.stride()[:2],
                *_arguments.strides(key),
                *_arguments.strides(value),
                0 if block_table is None else block_table.stride(0),
                *_arguments.numbers(options),
            ),
            {
                "GROUP": group,
                "HEAD_DIM": head_dim,
                "BLOCK_SIZE": key.shape[1] if paged else 1,
                "TILE_Q": tiles.q,
                "TILE_KV": tiles.kv,
                "TILE_D": _tiles.power_of_two(head_dim),
                "PAGED": paged,
                **kinds,
                "CAUSAL": causal,
                "ALL_MASKED": batch_invariant,
                "HAS_LSE": return_lse,
                **_arguments.settings(query, options),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return output if lse is None else AttentionOutput(output, lse)
