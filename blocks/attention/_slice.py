"""What the forward and the backward of ``slice_attention`` share: checks and running sums."""

import torch
from torch import Tensor

from blocks._checks import check, check_dtype, check_same_device, check_shape, fail
from blocks.attention._layout import REFERENCE_DTYPES, check_bounds, check_heads


def running_sums(query: Tensor, start: int, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Running sums of the slice's tokens and of the keys they see, one entry a sequence."""
    slice_len = query.shape[-3]
    end = start + slice_len
    if cu_seqlens is not None:
        return cu_seqlens.clamp(start, end) - start, cu_seqlens.clamp(max=end)
    num_seqs = query.shape[0] if query.dim() == 4 else 1
    order = torch.arange(num_seqs + 1, dtype=torch.int32, device=query.device)
    return order * slice_len, order * end


def check_slice(
    query: Tensor, key: Tensor, value: Tensor, start: int, cu_seqlens: Tensor | None
) -> int:
    """Check shapes and dtypes; returns the end of the slice."""
    batch = tuple(query.shape[:-3])
    check(query.dim() in (3, 4), "query dimensions", "3, or 4 with a batch", query.dim())
    check_shape("key", key, (*batch, "max_len", "num_kv_heads", query.shape[-1]), "as query has it")
    check_shape("value", value, tuple(key.shape), "the shape of key")
    check(query.shape[-1] > 0, "head_dim", "above 0", 0)
    check_heads(query.shape[-2], key.shape[-2])
    check_dtype("query", query, REFERENCE_DTYPES)
    check_dtype("key", key, (query.dtype,), "the dtype of query")
    check_dtype("value", value, (query.dtype,), "the dtype of query")
    check_same_device(query=query, key=key, value=value, cu_seqlens=cu_seqlens)
    end, max_len = start + query.shape[-3], key.shape[-3]
    if not 0 <= start <= end <= max_len:
        expected = f"from 0 to {max_len - query.shape[-3]} (max_len less slice_len)"
        raise fail("start", expected, start)
    if cu_seqlens is not None:
        check(not batch, "cu_seqlens", "None with a batch", "a tensor", "pack the documents")
        check_shape("cu_seqlens", cu_seqlens, ("num_documents + 1",))
        check_dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    return end


def check_documents(cu_seqlens: Tensor, end: int) -> None:
    total = int(cu_seqlens[-1]) if len(cu_seqlens) else -1
    if total < end:
        raise fail("cu_seqlens", f"running sums from 0 to at least {end}", total)
    check_bounds("cu_seqlens", cu_seqlens, total)
