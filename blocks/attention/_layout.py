"""Checks of how tensors lie: shapes, dtypes, devices, and (where the host may look) lengths.

The shape checks run on every layer of every step, so each is one condition that is cheap when it
holds; the message is worked out only when it does not. Block ids and lengths are looked at where
the tensors are on the CPU; an accelerator would have to be waited for, so there only if asked for
(``BLOCKS_VALIDATE=1``).
"""

import functools
import itertools
import os

import torch
from torch import Tensor

from blocks._checks import (
    check,
    check_dtype,
    check_positive,
    check_same_device,
    check_shape,
    fail,
)
from blocks._impl import choose_impl
from blocks.attention._scales import QUANTISED

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE_DTYPES = (*DTYPES, torch.float64)


def choose(
    impl: str | None,
    has: tuple[str, ...],
    query: Tensor,
    *others: Tensor,
    differentiable: tuple[str, ...] = ("reference", "torch"),
) -> str:
    """``choose_impl`` for this block: float64 is for the differentiable implementations."""
    grad = torch.is_grad_enabled() and (query.requires_grad or any(t.requires_grad for t in others))
    if query.dtype == torch.float64:
        has = tuple(name for name in has if name in ("torch", "reference"))
    return choose_impl(impl, has, query, grad=grad, differentiable=differentiable)


def check_num_splits(num_splits: int | None, how: str, batch_invariant: bool) -> None:
    """``num_splits`` is a positive count, and a choice only the Triton kernels have."""
    check_positive("num_splits", num_splits)
    if num_splits is not None and how != "triton":
        hint = "only the Triton kernel has a choice of splits"
        raise fail("num_splits", f"None with impl={how!r}", num_splits, hint)
    if num_splits is not None and batch_invariant:
        raise fail("num_splits", "None with batch_invariant", num_splits, "its splits are fixed")


def check_batch_invariant(batch_invariant: bool, how: str) -> None:
    """``batch_invariant`` can be asked of the implementations that cut the context themselves."""
    if batch_invariant and how not in ("native", "triton"):
        raise fail("impl", "native or triton with batch_invariant", how, "torch chooses its own")


def may_look(tensor: Tensor) -> bool:
    """Whether the host may read lengths and block ids: it waits for the device to do so."""
    return tensor.device.type == "cpu" or validating()


@functools.cache
def validating() -> bool:
    """``BLOCKS_VALIDATE=1``: check tensor contents on accelerators too; read once a process."""
    return os.environ.get("BLOCKS_VALIDATE") == "1"


def check_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor | None,
) -> None:
    """Check everything about a paged call that needs no look at tensor contents."""
    q, k, num_seqs = query.shape, key_cache.shape, seq_lens.shape
    dtype, device = query.dtype, query.device
    ok = (
        len(q) == 3
        and len(k) == 4
        and len(num_seqs) == 1
        and k == value_cache.shape
        and q[2] == k[3] > 0
        and k[1] > 0
        and k[2] > 0
        and q[1] > 0
        and q[1] % k[2] == 0
        and key_cache.dtype == value_cache.dtype
        and (dtype == key_cache.dtype or key_cache.dtype in QUANTISED)
        and dtype in REFERENCE_DTYPES
        and block_table.dtype == seq_lens.dtype == torch.int32
        and block_table.dim() == 2
        and block_table.shape[0] == num_seqs[0]
        and device == key_cache.device == value_cache.device == block_table.device
        and device == seq_lens.device
    )
    if ok and cu_seqlens_q is None:
        ok = q[0] == num_seqs[0]
    elif ok and cu_seqlens_q is not None:
        ok = (
            cu_seqlens_q.dtype == torch.int32
            and cu_seqlens_q.shape == (num_seqs[0] + 1,)
            and cu_seqlens_q.device == device
        )
    if not ok:
        _explain_paged(query, key_cache, value_cache, block_table, seq_lens, cu_seqlens_q)


def _explain_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor | None,
) -> None:
    """Raise the error that ``check_paged`` found."""
    rows = "num_seqs" if cu_seqlens_q is None else "num_tokens"
    check_shape("query", query, (rows, "num_heads", "head_dim"))
    cache = ("num_blocks", "block_size", "num_kv_heads", query.shape[2])
    check_shape("key_cache", key_cache, cache, "the last dimension is the query's head_dim")
    check_shape("value_cache", value_cache, tuple(key_cache.shape), "the shape of key_cache")
    check(min(key_cache.shape[1:]) > 0, "key_cache shape", "sizes above 0", list(key_cache.shape))
    check_heads(query.shape[1], key_cache.shape[2])
    check_dtype("query", query, REFERENCE_DTYPES)
    allowed = (query.dtype, *QUANTISED)
    check_dtype("key_cache", key_cache, allowed, "the dtype of query, or a quantised one")
    check_dtype("value_cache", value_cache, (key_cache.dtype,), "the dtype of key_cache")
    check_shape("seq_lens", seq_lens, ("num_seqs",))
    num_seqs = seq_lens.shape[0]
    check_shape("block_table", block_table, (num_seqs, "max_blocks"), "one row per sequence")
    check_dtype("block_table", block_table, (torch.int32,))
    check_dtype("seq_lens", seq_lens, (torch.int32,))
    if cu_seqlens_q is None:
        check_shape("query", query, (num_seqs, "num_heads", "head_dim"), "one row per sequence")
    else:
        check_shape("cu_seqlens_q", cu_seqlens_q, (num_seqs + 1,), "num_seqs + 1 running sums")
        check_dtype("cu_seqlens_q", cu_seqlens_q, (torch.int32,))
    check_same_device(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        block_table=block_table,
        seq_lens=seq_lens,
        cu_seqlens_q=cu_seqlens_q,
    )
    raise AssertionError("check_paged refused what _explain_paged finds right")


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Query heads share key heads in equal groups."""
    check(
        num_kv_heads > 0 and num_heads > 0 and num_heads % num_kv_heads == 0,
        "num_heads",
        f"a positive multiple of num_kv_heads ({num_kv_heads})",
        num_heads,
    )


def check_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None
) -> None:
    """Check everything about a packed call that needs no look at tensor contents."""
    q, k, bounds = query.shape, key.shape, cu_seqlens_q.shape
    dtype, device = query.dtype, query.device
    ok = (
        len(q) == len(k) == 3
        and len(bounds) == 1
        and bounds[0] > 0
        and k == value.shape
        and q[2] == k[2] > 0
        and k[1] > 0
        and q[1] > 0
        and q[1] % k[1] == 0
        and dtype == key.dtype == value.dtype
        and dtype in REFERENCE_DTYPES
        and cu_seqlens_q.dtype == torch.int32
        and device == key.device == value.device == cu_seqlens_q.device
    )
    if ok and cu_seqlens_k is None:
        ok = q[0] == k[0]
    elif ok and cu_seqlens_k is not None:
        ok = (
            cu_seqlens_k.dtype == torch.int32
            and cu_seqlens_k.shape == bounds
            and cu_seqlens_k.device == device
        )
    if not ok:
        _explain_packed(query, key, value, cu_seqlens_q, cu_seqlens_k)


def _explain_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None
) -> None:
    """Raise the error that ``check_packed`` found."""
    check_shape("query", query, ("num_tokens", "num_heads", "head_dim"))
    check_shape("key", key, ("num_keys", "num_kv_heads", query.shape[2]))
    check_shape("value", value, tuple(key.shape), "the shape of key")
    check(query.shape[2] > 0, "head_dim", "above 0", 0)
    check_heads(query.shape[1], key.shape[1])
    check_dtype("query", query, REFERENCE_DTYPES)
    check_dtype("key", key, (query.dtype,), "the dtype of query")
    check_dtype("value", value, (query.dtype,), "the dtype of query")
    check_shape("cu_seqlens_q", cu_seqlens_q, ("num_seqs + 1",))
    check(len(cu_seqlens_q) > 0, "cu_seqlens_q", "num_seqs + 1 running sums from 0", "none")
    check_dtype("cu_seqlens_q", cu_seqlens_q, (torch.int32,))
    if cu_seqlens_k is not None:
        check_shape("cu_seqlens_k", cu_seqlens_k, (len(cu_seqlens_q),), "as long as cu_seqlens_q")
        check_dtype("cu_seqlens_k", cu_seqlens_k, (torch.int32,))
    elif key.shape[0] != query.shape[0]:
        raise fail("key shape", f"{query.shape[0]} tokens", key.shape[0], "or pass cu_seqlens_k")
    check_same_device(
        query=query, key=key, value=value, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
    )
    raise AssertionError("check_packed refused what _explain_packed finds right")


def check_bounds(name: str, cu_seqlens: Tensor, num_tokens: int) -> list[int]:
    """Check running sums against the tokens they cut up, and return them as a list."""
    bounds = cu_seqlens.tolist()
    ok = bounds[0] == 0 and all(a <= b for a, b in itertools.pairwise(bounds))
    if not ok or bounds[-1] != num_tokens:
        raise fail(name, f"running sums from 0 to {num_tokens}, never falling", bounds[:20])
    return bounds


def check_lengths(
    query_lens: list[int], seq_lens: list[int], block_table: Tensor, key_cache: Tensor, window
) -> None:
    """Check lengths against each other and the table, and that every block to be read exists."""
    num_blocks, block_size = key_cache.shape[:2]
    capacity = block_table.shape[1] * block_size
    for s, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        if not query_len <= seq_len <= capacity:
            raise fail(
                f"seq_lens[{s}]",
                f"from {query_len} (its new tokens) to {capacity} (what block_table can hold)",
                seq_len,
            )
        if query_len == 0:
            continue
        first = 0 if window is None else max(0, seq_len - query_len - window + 1)
        used = block_table[s, first // block_size : -(-seq_len // block_size)]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < num_blocks:
            bad = used[(used < 0) | (used >= num_blocks)][0].item()
            raise fail(f"block_table[{s}]", f"block ids in [0, {num_blocks})", bad)
