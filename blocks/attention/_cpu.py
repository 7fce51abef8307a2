"""The C++ implementation: one entry for packed and paged keys, called through ctypes.

Runs once a layer and step, so the host part is a few microseconds: shapes, strides and pointers
are handed over as they are. Lengths and block ids are checked in C++ before any key is read; only
after a refusal does Python look for what was wrong.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks import _native
from blocks._checks import fail
from blocks.attention._call import Call
from blocks.attention._scales import NO_SCALES, Scales, scale_kind
from blocks.attention.output import AttentionOutput

SOURCE = Path(__file__).parent / "_native" / "attention.cpp"
QUANTISED_SOURCE = SOURCE.with_name("quantised.cpp")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STORED = {torch.float8_e4m3fn: 3, torch.int8: 4}
KINDS = {"none": 0, "tensor": 1, "head": 2, "block": 3, "token": 4}


class Rows(NamedTuple):
    """What few calls say of their queries, one token or sequence at a time; see ``args.h``.

    tree: int64 [num_tokens], bit j set where the token sees draft token j of its sequence.
    ends: int32 [num_tokens], one past where each query sits; default: at the tail of its keys.
    starts: int32 [num_seqs], the first key to attend to; default: 0.
    wide: give the output in float32.
    """

    tree: Tensor | None = None
    ends: Tensor | None = None
    starts: Tensor | None = None
    wide: bool = False


class _Extra(ctypes.Structure):
    _fields_ = (
        ("k_scale", ctypes.c_void_p),
        ("k_kind", ctypes.c_int64),
        ("v_scale", ctypes.c_void_p),
        ("v_kind", ctypes.c_int64),
        ("tree", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("wide", ctypes.c_int64),
    )


@functools.cache
def _entry(quantised: bool) -> Any:
    function = _native.load(QUANTISED_SOURCE if quantised else SOURCE).blocks_attention
    pointers, sizes = [ctypes.c_void_p] * 11, [ctypes.c_int64] * 22
    function.argtypes = [*pointers, *sizes, ctypes.c_double, ctypes.c_double]
    function.restype = ctypes.c_int64
    return function


def attention(
    call: Call,
    *,
    rows: Rows | None = None,
    causal: bool = True,
    return_lse: bool = False,
    into: tuple[Tensor, Tensor] | None = None,
) -> Any:
    """Run the C++ kernel; returns None where it refused the lengths or block ids.

    ``into`` takes output and LSE, contiguous; without, they are new. The output is as wide as the
    keys, also where values are only their leading part.
    """
    query, key, value, block_table, seq_lens, cu_seqlens_q, options, scales = call
    if query.stride(2) != 1:
        query = query.contiguous()
    q_token, q_head, _ = query.stride()
    num_tokens, num_heads, head_dim = shape = tuple(query.shape)
    if block_table is None:
        key, value = key.unsqueeze(1), value.unsqueeze(1)
        table_pointer, max_blocks, table_stride = None, 0, 0
        num_seqs = seq_lens.shape[0] - 1
    else:
        if block_table.stride(1) != 1:
            block_table = block_table.contiguous()
        table_pointer, table_stride = block_table.data_ptr(), block_table.stride(0)
        num_seqs, max_blocks = block_table.shape
    num_blocks, block_size, num_kv_heads, _ = key.shape
    k_block, k_slot, k_head, k_dim = key.stride()
    v_block, v_slot, v_head, v_dim = value.stride()
    if block_table is None:
        k_slot, v_slot, block_size = k_block, v_block, 0
    dtype = DTYPES.get(query.dtype)
    stored = STORED.get(key.dtype, dtype)
    if k_dim != 1 or v_dim != 1 or dtype is None:
        raise _refusal(query, k_dim, v_dim)
    extra = None
    if rows is not None or scales is not NO_SCALES:
        rows = Rows() if rows is None else rows
        extra = ctypes.byref(_extra(rows, scales, key))
    wide = rows is not None and rows.wide
    output = torch.empty(shape, dtype=torch.float32 if wide else query.dtype)
    lse = torch.empty(shape[:2], dtype=torch.float32) if return_lse else None
    if into is not None:
        output, lse = into
    seq_lens = seq_lens.contiguous()  # these names keep copies alive during the call
    cu_seqlens_q = None if cu_seqlens_q is None else cu_seqlens_q.contiguous()
    sinks = None if options.sinks is None else options.sinks.contiguous()
    slopes = None if options.alibi_slopes is None else options.alibi_slopes.contiguous()
    refused = _entry(stored != dtype)(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        table_pointer,
        seq_lens.data_ptr(),
        None if cu_seqlens_q is None else cu_seqlens_q.data_ptr(),
        None if sinks is None else sinks.data_ptr(),
        None if slopes is None else slopes.data_ptr(),
        output.data_ptr(),
        None if lse is None else lse.data_ptr(),
        extra,
        num_seqs,
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        num_blocks,
        block_size,
        max_blocks,
        table_stride,
        q_token,
        q_head,
        k_block,
        k_slot,
        k_head,
        v_block,
        v_slot,
        v_head,
        dtype,
        stored,
        causal,
        options.window or 0,
        torch.get_num_threads(),
        options.scale,
        options.softcap or 0.0,
    )
    if refused < 0:
        raise MemoryError("attention: expected memory for its working tiles, got none")
    if refused:
        return None
    return output if lse is None else AttentionOutput(output, lse)


@functools.cache
def _merge_entry() -> Any:
    function = _native.load(SOURCE.with_name("merge.cpp")).blocks_merge
    function.argtypes = [*([ctypes.c_void_p] * 4), *([ctypes.c_int64] * 6)]
    function.restype = None
    return function


def merge(outputs: Tensor, lses: Tensor, dtype: torch.dtype) -> AttentionOutput:
    """``merge_states``, with the result in ``dtype``, which is that of ``outputs`` or narrower."""
    num_states, num_tokens, num_heads, head_dim = outputs.shape
    outputs, lses = outputs.contiguous(), lses.contiguous()
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=dtype)
    lse = torch.empty((num_tokens, num_heads), dtype=torch.float32)
    _merge_entry()(
        outputs.data_ptr(),
        lses.data_ptr(),
        output.data_ptr(),
        lse.data_ptr(),
        num_states,
        num_tokens * num_heads,
        head_dim,
        DTYPES[outputs.dtype],
        DTYPES[dtype],
        torch.get_num_threads() if output.numel() * num_states > 1 << 16 else 1,
    )
    return AttentionOutput(output, lse)


def _extra(rows: Rows, scales: Scales, key: Tensor) -> _Extra:
    def pointer(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return _Extra(
        pointer(scales.k),
        KINDS[scale_kind(scales.k, key)],
        pointer(scales.v),
        KINDS[scale_kind(scales.v, key)],
        pointer(rows.tree),
        pointer(rows.ends),
        pointer(rows.starts),
        rows.wide,
    )


def _refusal(query: Tensor, k_dim: int, v_dim: int) -> Exception:
    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        return TypeError(f"query dtype: expected one of {names}, got {query.dtype}")
    strides = f"{k_dim} (key), {v_dim} (value)"
    return fail("head_dim stride", "1 for keys and values", strides, "call .contiguous() once")
