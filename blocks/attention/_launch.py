"""Host side of the Triton kernels: allocate, choose tiles and grid, launch.

Nothing here looks at the contents of a tensor, so no launch waits for the device and every one can
be captured in a graph.
"""

from typing import Any

import torch
from torch import Tensor

from blocks._launch import interpreted, launch
from blocks.attention import _launch_tma, _tiles
from blocks.attention._layout import DTYPES
from blocks.attention._options import Options
from blocks.attention._scales import NO_SCALES, Scales, scale_kind
from blocks.attention._splits import FIXED_SPLIT, choose_num_splits, num_fixed_splits
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
    kinds = _scale_kinds(scales, key)
    query, key, value = _prepare(query, key, value)
    block_table = None if block_table is None else _contiguous_rows(block_table)
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
                *_strides(key),
                *_strides(value),
                0 if block_table is None else block_table.stride(0),
                *_numbers(options),
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
                **_settings(query, options),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return output if lse is None else AttentionOutput(output, lse)


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
        num_splits = _num_splits(query, key_cache, block_table, batch_invariant)
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
        state = merge(outputs, lses, query.dtype)
    return state if return_lse else state.output


def partial_states(query: Tensor, num_states: int, wide: bool) -> tuple[Tensor, Tensor]:
    """Memory for states to be merged; in float32 where ``wide``, else as the query."""
    shape = (num_states, *query.shape[:2])
    dtype = torch.float32 if wide else query.dtype
    outputs = torch.empty((*shape, query.shape[2]), dtype=dtype, device=query.device)
    return outputs, torch.empty(shape, dtype=torch.float32, device=query.device)


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
    kinds = _scale_kinds(scales, key_cache)
    query, key_cache, value_cache = _prepare(query, key_cache, value_cache)
    block_table = _contiguous_rows(block_table)
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
                *_strides(key_cache),
                *_strides(value_cache),
                block_table.stride(0),
                *_numbers(options),
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
                **_settings(query, options),
            },
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )


def _num_splits(
    query: Tensor, key_cache: Tensor, block_table: Tensor, batch_invariant: bool
) -> int:
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


def merge(outputs: Tensor, lses: Tensor, dtype: torch.dtype) -> AttentionOutput:
    """``merge_states``, with the result in ``dtype``."""
    from blocks.attention._triton.merge import _merge_states_kernel

    num_states, num_tokens, num_heads, head_dim = outputs.shape
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=dtype, device=outputs.device)
    lse = torch.empty((num_tokens, num_heads), dtype=torch.float32, device=outputs.device)
    num_rows = num_tokens * num_heads
    if num_rows:
        launch(
            _merge_states_kernel,
            (num_rows,),
            (outputs.contiguous(), lses.contiguous(), output, lse),
            (num_states, num_rows),
            {
                "HEAD_DIM": head_dim,
                "TILE_D": _tiles.power_of_two(head_dim),
                "TILE_S": _tiles.merge_states(head_dim),
            },
            num_warps=1 if head_dim <= 64 else 2,
            num_stages=2,
        )
    return AttentionOutput(output, lse)


def _prepare(query: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"query dtype: expected one of {names}, got {query.dtype}")
    if query.shape[-1] > 256:
        raise ValueError(
            f"head_dim: expected at most 256 with impl='triton', got {query.shape[-1]}"
        )
    if any(cache.stride(-1) != 1 for cache in caches):
        strides = [cache.stride(-1) for cache in caches]
        raise ValueError(
            f"head_dim stride: expected 1 for keys and values, got {strides}; "
            "call .contiguous() once"
        )
    return (_contiguous_rows(query), *(_stored(cache) for cache in caches))


def _stored(cache: Tensor) -> Tensor:
    """The cache as the kernels load it: float8 as bytes where the chip does not know its format."""
    if cache.dtype != torch.float8_e4m3fn or _tiles.converts_float8(_tiles.chip(cache.device)):
        return cache
    return cache.view(torch.uint8)


def _scale_kinds(scales: Scales, cache: Tensor) -> dict[str, str]:
    return {"K_SCALE": scale_kind(scales.k, cache), "V_SCALE": scale_kind(scales.v, cache)}


def _contiguous_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(cache: Tensor) -> tuple[int, ...]:
    """Strides of block, slot and head; a packed tensor has no blocks."""
    return (0, *cache.stride()[:2]) if cache.dim() == 3 else cache.stride()[:3]


def _numbers(options: Options) -> tuple[float, float, int]:
    return options.scale, options.softcap or 1.0, options.window or 0


def _settings(query: Tensor, options: Options) -> dict[str, object]:
    return {
        "HAS_WINDOW": options.window is not None,
        "HAS_SOFTCAP": options.softcap is not None,
        "HAS_SINKS": options.sinks is not None,
        "HAS_SLOPES": options.alibi_slopes is not None,
        "INTERPRET": interpreted(),
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
