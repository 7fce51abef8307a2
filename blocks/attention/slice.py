"""``slice_attention``: one token slice of a sequence over the keys up to its end, and its backward.

A token pipeline cuts a sequence into slices. Forward, slice after slice, each sees the keys before
its end; backward, in the opposite order, each adds to the gradients of all those keys. When slice
[start, end) has run, the gradients of keys from ``start`` on are complete.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from blocks._autograd import must_trace
from blocks._checks import expects_tensors
from blocks._work import Work
from blocks.attention import _blocked, _cpu, _launch_attend, _packed, reference
from blocks.attention._call import Call
from blocks.attention._count import attention_work
from blocks.attention._layout import check_batch_invariant, choose
from blocks.attention._options import Options, resolve_options
from blocks.attention._slice import check_documents, check_slice, running_sums
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "torch", "reference")


@expects_tensors
def slice_attention(
    query: Float[Tensor, "*batch slice_len num_heads head_dim"],
    key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    start: int,
    *,
    cu_seqlens: Int32[Tensor, " num_bounds"] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    batch_invariant: bool = False,
    impl: str | None = None,
) -> AttentionOutput:
    """Compute causal attention of the tokens [start, start + slice_len) over the keys up to them.

    The rows ``prefill`` of the whole sequence would give; on the CPU the same bits (``native``).
    Keys and values are buffers as long as the sequence may become: rows from the end of the slice
    on are not read. Differentiable where an input requires grad; pipelines, whose slices share the
    buffers, use ``slice_attention_backward`` or ``SlicePrefix`` instead.

    Args:
        query: tokens of the slice; of one sequence, or with a leading batch dimension of several
            cut at the same places.
        key: keys of the sequence from its first token; at least ``start + slice_len`` are there.
        value: as key.
        start: position of the first token of the slice.
        cu_seqlens: where the sequence consists of documents that do not see one another: running
            sums of their lengths from 0, at least up to the end of the slice. Not with a batch.
        scale, window, softcap, sinks, alibi_slopes: see ``prefill``.
        batch_invariant: see ``prefill``, whose bits these are: however the sequence is sliced and
            with whatever others it lies in a batch.
        impl: ``reference``, ``torch``, ``native`` (C++, CPU) or ``triton``.

    Returns:
        Output of query's shape and dtype, and LSE, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, positions or settings that do not fit together.
        TypeError: dtypes that do not fit together.

    Example:
        >>> q, k, v = (torch.randn(6, heads, 64) for heads in (4, 2, 2))
        >>> slice_attention(q[4:], k, v, 4).output.shape
        torch.Size([2, 4, 64])

    Reference:
        Li et al., "TeraPipe: Token-Level Pipeline Parallelism", 2021, section 3.1.
    """
    settings = (scale, window, softcap, sinks, alibi_slopes)
    tensors = (query, key, value)
    end, options, how = resolve(*tensors, start, cu_seqlens, settings, batch_invariant, impl)
    row = query if query.dim() == 3 else query.flatten(0, 1)
    traced = must_trace(query, key, value, sinks, alibi_slopes)
    if how == "reference":
        return reference.slice_attention(
            query, key, value, start, cu_seqlens=cu_seqlens, **options._asdict()
        )
    if query.dim() == 4 and not traced and how is not None:
        return _batched(how, query, key, value, start, options, batch_invariant)
    keys, values = (t.narrow(-3, 0, end) for t in (key, value))
    if query.dim() == 4:
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    sums = running_sums(query, start, cu_seqlens)
    if traced:
        scale, window, softcap, *per_head = options
        settings = (*per_head, scale, window, softcap, True, batch_invariant, how)
        output, lse = _packed.PREFILL(row, keys, values, *sums, *settings)
    else:
        assert how is not None
        packed = (row, keys, values, *sums, options)
        output, lse = _packed.forward(how, *packed, batch_invariant=batch_invariant)
    return AttentionOutput(output.view(query.shape), lse.view(query.shape[:-1]))


def resolve(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    cu_seqlens: Tensor | None,
    settings: tuple[Any, ...],
    batch_invariant: bool,
    impl: str | None,
) -> tuple[int, Options, str | None]:
    """Check a call without running it: the end of the slice, the options, the implementation."""
    end = check_slice(query, key, value, start, cu_seqlens)
    options = resolve_options(query if query.dim() == 3 else query.flatten(0, 1), *settings)
    compiling = torch.compiler.is_compiling() and impl != "reference"
    how = impl if compiling else choose(impl, HAS, query, key, value, differentiable=HAS)
    if how is not None:
        check_batch_invariant(batch_invariant, how)
    if cu_seqlens is not None and query.device.type == "cpu" and not compiling:
        check_documents(cu_seqlens, end)
    return end, options, how


def slice_attention_work(
    start: int,
    slice_len: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
) -> Work:
    """Work of one ``slice_attention`` of one sequence: visible pairs, every tensor once.

    >>> slice_attention_work(2, 2, num_heads=1, num_kv_heads=1, head_dim=8, itemsize=2)
    Work(flops=224, bytes=192)
    """
    lens = ([slice_len], [start + slice_len])
    return attention_work(*lens, num_heads, num_kv_heads, head_dim, itemsize, window)


def _batched(
    how: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    options: Options,
    batch_invariant: bool,
) -> AttentionOutput:
    """Slices of several sequences: each one's buffer is one block of a paged cache."""
    batch, slice_len = query.shape[:2]
    end = start + slice_len
    if how == "torch":
        output, lse = _blocked.forward(query, key[:, :end], value[:, :end], options, True)
        return AttentionOutput(output, lse)
    table = torch.arange(batch, dtype=torch.int32, device=query.device)[:, None]
    lens = torch.full((batch,), end, dtype=torch.int32, device=query.device)
    sums, _ = running_sums(query, start, None)
    call = Call(query.flatten(0, 1), key, value, table, lens, sums, options)
    if how == "triton":
        found = _launch_attend.attend(call, return_lse=True, batch_invariant=batch_invariant)
    else:
        found = _cpu.attention(call, return_lse=True)
        assert found is not None, "the C++ kernel refused what the checks find right"
    return AttentionOutput(found.output.view(query.shape), found.lse.view(query.shape[:-1]))
