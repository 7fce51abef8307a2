"""``prefill``: attention of packed sequences whose keys are in contiguous memory."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor

from blocks._checks import expects_tensors, fail
from blocks._work import Work
from blocks.attention import _cpu, _launch, _torch, reference
from blocks.attention._count import attention_work
from blocks.attention._layout import check_bounds, check_packed, choose
from blocks.attention._options import resolve_options

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
    return_lse: bool = False,
    impl: str | None = None,
) -> Any:
    """Compute softmax attention of packed sequences over their own keys.

    The queries of a sequence are the tail of its keys: query ``i`` sits at position
    ``key_len - query_len + i`` and, when ``causal``, sees the keys up to it. A query that sees no
    key gets zeros and an LSE of -inf. Scores and sums are float32.

    With gradients the ``torch`` implementation is taken: ``scaled_dot_product_attention``, or the
    eager formula when softcap, sinks, alibi_slopes or return_lse is asked for.

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
        return_lse: return an ``AttentionOutput`` instead of the output alone.
        impl: ``reference``, ``torch``, ``native`` (C++, CPU) or ``triton``.

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
    how = choose(impl, HAS, query, key, value)
    if how == "triton":
        key_sums = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        return _launch.attend(
            query,
            key,
            value,
            None,
            key_sums,
            cu_seqlens_q,
            options,
            causal=causal,
            return_lse=return_lse,
        )
    if how == "native":
        key_sums = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        result = _cpu.attention(
            query,
            key,
            value,
            None,
            key_sums,
            cu_seqlens_q,
            options,
            causal=causal,
            return_lse=return_lse,
        )
        if result is not None:
            return result
    q_bounds = check_bounds("cu_seqlens_q", cu_seqlens_q, query.shape[0])
    k_bounds = q_bounds
    if cu_seqlens_k is not None:
        k_bounds = check_bounds("cu_seqlens_k", cu_seqlens_k, key.shape[0])
    assert how != "native", "the C++ kernel refused what the checks find right"
    if how == "torch" and not _torch.needs_eager(options, return_lse):
        return _torch.prefill(query, key, value, q_bounds, k_bounds, options, causal)
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
