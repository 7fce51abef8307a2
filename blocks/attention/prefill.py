"""``prefill``: attention of packed sequences whose keys are in contiguous memory."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from blocks._autograd import must_trace
from blocks._checks import expects_tensors, fail
from blocks._work import Work
from blocks.attention import _packed, _torch, reference
from blocks.attention._count import attention_work, backward_work
from blocks.attention._layout import check_batch_invariant, check_bounds, check_packed, choose
from blocks.attention._options import resolve_options
from blocks.attention._packed import PREFILL
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "torch", "reference")


@expects_tensors
def prefill(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key: Float[Tensor, "num_keys num_kv_heads head_dim"],
    value: Float[Tensor, "num_keys num_kv_heads head_dim"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    cu_seqlens_k: Int32[Tensor, " num_bounds"] | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
    impl: str | None = None,
) -> Any:
    """Compute softmax attention of packed sequences over their own keys.

    The queries of a sequence are the tail of its keys: query ``i`` sits at position
    ``key_len - query_len + i`` and, when ``causal``, sees the keys up to it. A query that sees no
    key gets zeros and an LSE of -inf. Scores and sums are float32.

    Differentiable in query, key, value, sinks and alibi_slopes, through the LSE too, in every
    implementation; the backward recomputes scores from the LSE, so it needs no more memory than
    the inputs. It uses no atomics: the same call gives the same bits.

    Args:
        query: new tokens of all sequences, one after the other; only head_dim need be contiguous.
        key: keys of all sequences, packed the same way.
        value: as key.
        cu_seqlens_q: running sums of query lengths from 0, ``num_seqs + 1`` long.
        cu_seqlens_k: the same of key lengths; None when they equal the query lengths.
        causal: whether a query sees only positions up to its own.
        scale: multiplies scores; default ``1 / sqrt(head_dim)``.
        window: most recent positions a query sees, itself included; needs ``causal``.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        sinks: per head, a logit that takes weight and adds nothing.
        alibi_slopes: per head, ``slope * distance`` is taken off the score, after softcap.
        batch_invariant: use the same form, tiles and one masked loop whatever the call looks like,
            so that a query's bits depend on it and its own keys alone: the same in any batch, and
            whether the queries of a prompt come at once or in parts. ``native`` always does.
        return_lse: return an ``AttentionOutput`` instead of the output alone.
        impl: ``reference``, ``torch``, ``native`` (C++, CPU; its backward is made of torch calls)
            or ``triton``.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: shapes, lengths or settings that do not fit together.
        TypeError: dtypes that do not fit together.

    Example:
        >>> q, k, v = (torch.randn(5, heads, 64) for heads in (4, 2, 2))
        >>> prefill(q, k, v, torch.tensor([0, 2, 5], dtype=torch.int32)).shape
        torch.Size([5, 4, 64])

    Reference:
        Dao, "FlashAttention-2", 2023, section 3.1.
    """
    check_packed(query, key, value, cu_seqlens_q, cu_seqlens_k)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    if window is not None and not causal:
        raise fail("window", "None when causal=False", window, "a window looks back only")
    key_sums = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    traced = must_trace(query, key, value, sinks, alibi_slopes)
    compiling = torch.compiler.is_compiling() and impl != "reference"
    how = impl if compiling else choose(impl, HAS, query, key, value, differentiable=HAS)
    if how is not None:
        check_batch_invariant(batch_invariant, how)
    if how == "torch" and not compiling and not _torch.needs_eager(options, return_lse):
        q_bounds = check_bounds("cu_seqlens_q", cu_seqlens_q, query.shape[0])
        k_bounds = check_bounds("cu_seqlens_k", key_sums, key.shape[0])
        return _torch.prefill(query, key, value, q_bounds, k_bounds, options, causal)
    if how == "reference":
        q_bounds = check_bounds("cu_seqlens_q", cu_seqlens_q, query.shape[0])
        check_bounds("cu_seqlens_k", key_sums, key.shape[0])
        return reference.prefill(
            query,
            key,
            value,
            cu_seqlens_q,
            cu_seqlens_k,
            causal=causal,
            return_lse=return_lse,
            **options._asdict(),
        )
    packed = (query, key, value, cu_seqlens_q, key_sums)
    if not traced:
        assert how is not None
        found = _packed.forward(
            how,
            *packed,
            options,
            causal=causal,
            batch_invariant=batch_invariant,
            return_lse=return_lse,
        )
        return AttentionOutput(found.output, found.lse.float()) if return_lse else found
    scale, window, softcap, *per_head = options
    output, lse = PREFILL(*packed, *per_head, scale, window, softcap, causal, batch_invariant, how)
    return AttentionOutput(output, lse.float()) if return_lse else output


def prefill_work(
    query_lens: Sequence[int],
    key_lens: Sequence[int] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
    causal: bool = True,
) -> Work:
    """Work of one ``prefill``: visible pairs only, every tensor once.

    >>> prefill_work([2], num_heads=1, num_kv_heads=1, head_dim=8, itemsize=2)
    Work(flops=96, bytes=128)
    """
    keys = query_lens if key_lens is None else key_lens
    return attention_work(
        query_lens, keys, num_heads, num_kv_heads, head_dim, itemsize, window, causal
    )


def prefill_backward_work(
    query_lens: Sequence[int],
    key_lens: Sequence[int] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
    causal: bool = True,
) -> Work:
    """Work of the backward of one ``prefill``: five products a visible pair, every tensor once.

    >>> prefill_backward_work([2], num_heads=1, num_kv_heads=1, head_dim=8, itemsize=2)
    Work(flops=240, bytes=256)
    """
    keys = query_lens if key_lens is None else key_lens
    return backward_work(
        query_lens, keys, num_heads, num_kv_heads, head_dim, itemsize, window, causal
    )
