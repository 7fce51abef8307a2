"""Host side of the backward kernels: three launches, nothing read back, no atomics."""

from typing import Any

import torch
from torch import Tensor

from blocks._launch import launch
from blocks.attention import _arguments, _tiles
from blocks.attention._backward_call import BackwardCall
from blocks.attention._options import Options
from blocks.attention._tiles_backward import backward_tiles

DELTA_ROWS = 16
"""Rows of one program of the delta kernel."""


def backward(
    call: BackwardCall,
    cu_seqlens_q: Tensor,
    key_starts: Tensor,
    key_ends: Tensor,
    *,
    causal: bool = True,
    want_slopes: bool = False,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write (``accumulate``: add to) grad_key and grad_value; return those of query and settings.

    The keys of sequence s are rows key_starts[s] to key_ends[s] of ``key``; starts rise from 0. The
    gradients of sinks and slopes are float32 [num_heads], zero where not asked for.
    """
    grad_output, grad_lse, query, key, value, output, lse, grad_key, grad_value, options = call
    _arguments.check_tensors(query, key, value)
    query, grad_output = map(_arguments.contiguous_rows, (query, grad_output))
    lse = lse.contiguous()
    num_heads, num_seqs = query.shape[1], cu_seqlens_q.shape[0] - 1
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_sinks, grad_slopes = (lse.new_zeros(num_heads) for _ in range(2))
    if num_seqs == 0:
        return grad_query, grad_sinks, grad_slopes
    delta = _delta(grad_output, output.contiguous(), grad_lse)
    sums = (t.contiguous() for t in (cu_seqlens_q, key_starts, key_ends))
    pointers = (grad_output, query, key, value, lse, delta, options.alibi_slopes, *sums)
    _launch_keys(pointers, grad_key, grad_value, options, causal, accumulate)
    slopes = torch.empty_like(delta) if want_slopes and options.alibi_slopes is not None else None
    _launch_queries(pointers, grad_query, slopes, options, causal)
    if slopes is not None:
        grad_slopes = slopes.sum(0)
    if options.sinks is not None:
        seen = lse.masked_fill(lse == -torch.inf, torch.inf)
        grad_sinks = -((options.sinks - seen).exp() * delta).sum(0)
    return grad_query, grad_sinks, grad_slopes


def _delta(grad_output: Tensor, output: Tensor, grad_lse: Tensor | None) -> Tensor:
    from blocks.attention._triton.backward import _delta_kernel

    num_tokens, num_heads, head_dim = output.shape
    delta = output.new_empty((num_tokens, num_heads), dtype=torch.float32)
    num_rows = num_tokens * num_heads
    if num_rows:
        launch(
            _delta_kernel,
            (-(-num_rows // DELTA_ROWS),),
            (grad_output, output, None if grad_lse is None else grad_lse.contiguous(), delta),
            (num_rows, num_heads, *grad_output.stride()[:2]),
            {
                "HEAD_DIM": head_dim,
                "TILE_R": DELTA_ROWS,
                "TILE_D": _tiles.power_of_two(head_dim),
                "HAS_GRAD_LSE": grad_lse is not None,
            },
            num_warps=4,
            num_stages=1,
        )
    return delta


def _launch_keys(
    pointers: tuple[Any, ...],
    grad_key: Tensor,
    grad_value: Tensor,
    options: Options,
    causal: bool,
    accumulate: bool,
) -> None:
    from blocks.attention._triton.backward_key import _backward_key_kernel

    num_keys, num_kv_heads, _ = grad_key.shape
    tiles, constants = _constants("key", pointers, options, causal)
    num_seqs = pointers[-1].shape[0]
    launch(
        _backward_key_kernel,
        ((num_keys // tiles.kv + num_seqs) * num_kv_heads,),
        (*pointers, grad_key, grad_value),
        (
            *_counts(pointers),
            *grad_key.stride()[:2],
            *grad_value.stride()[:2],
            *_arguments.numbers(options),
        ),
        {"ACCUMULATE": accumulate, **constants},
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _launch_queries(
    pointers: tuple[Any, ...],
    grad_query: Tensor,
    slopes: Tensor | None,
    options: Options,
    causal: bool,
) -> None:
    from blocks.attention._triton.backward_query import _backward_query_kernel

    num_tokens = grad_query.shape[0]
    tiles, constants = _constants("query", pointers, options, causal)
    num_seqs, num_kv_heads = pointers[-1].shape[0], pointers[2].shape[1]
    blocks = num_tokens // (tiles.q // constants["GROUP"]) + num_seqs
    launch(
        _backward_query_kernel,
        (blocks * num_kv_heads,),
        (*pointers, grad_query, slopes),
        (*_counts(pointers), *_arguments.numbers(options)),
        {"WANT_SLOPES": slopes is not None, **constants},
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _counts(pointers: tuple[Any, ...]) -> tuple[int, ...]:
    """Numbers of sequences and heads, and strides of token and head."""
    tensors = pointers[:4]
    strides = (n for t in tensors for n in t.stride()[:2])
    return (pointers[-1].shape[0], tensors[1].shape[1], tensors[2].shape[1], *strides)


def _constants(
    which: str, pointers: tuple[Any, ...], options: Options, causal: bool
) -> tuple[_tiles.Tiles, dict[str, Any]]:
    query, key = pointers[1:3]
    head_dim, group = query.shape[2], query.shape[1] // key.shape[1]
    chip = _tiles.chip(query.device)
    bent = options.softcap is not None or options.alibi_slopes is not None
    tiles = backward_tiles(which, chip, head_dim, group, query.itemsize, bent)
    settings = _arguments.settings(query, options)
    del settings["HAS_SINKS"]  # they are part of the LSE
    return tiles, {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "TILE_Q": tiles.q,
        "TILE_KV": tiles.kv,
        "TILE_D": _tiles.power_of_two(head_dim),
        "CAUSAL": causal,
        **settings,
    }
