"""``paged_decode``: attention of one new token a sequence over keys in the paged cache."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from blocks._checks import expects_tensors
from blocks._work import Work
from blocks.attention import _cpu, _launch_decode, _torch, reference
from blocks.attention._call import Call, check_contents
from blocks.attention._count import StoredKeys, attention_work
from blocks.attention._layout import (
    check_batch_invariant,
    check_num_splits,
    check_paged,
    choose,
    may_look,
)
from blocks.attention._options import resolve_options
from blocks.attention._scales import resolve_scales

HAS = ("native", "triton", "torch", "reference")


@expects_tensors
def paged_decode(
    query: Float[Tensor, "num_seqs num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    num_splits: int | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
    impl: str | None = None,
) -> Any:
    """Compute attention of one new token a sequence over its cached context.

    The token's own key and value are already in the cache, so a sequence of length ``n`` sees
    positions ``[0, n)`` (the last ``window`` of them). The query heads of a group share one read
    of their keys. The context is cut into splits that run side by side and are merged by LSE.

    Args:
        query: one row a sequence; only head_dim need be contiguous.
        key_cache, value_cache, block_table, seq_lens: see ``paged_extend``; a sequence of length 0
            (a padding row) gets zeros and an LSE of -inf.
        scale, window, softcap, sinks, alibi_slopes, return_lse, impl: see ``prefill``.
        k_scale, v_scale: of quantised caches, see ``paged_extend``.
        num_splits: slices of the context a sequence is cut into, for ``impl="triton"``; default
            from the number of processors and the shape of the call, without waiting for the
            device. The CPU implementations always cut at fixed positions.
        batch_invariant: cut the context at fixed positions (every 512), so that a row's bits
            depend on its own query and context alone: not on the batch, on the width of the block
            table, on which blocks hold the context, nor on the number of processors. ``native``
            always does. For ``triton`` this says nothing about the bits of ``paged_extend``, which
            folds the same context in one piece; the two agree to rounding.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: as ``paged_extend``; also ``num_splits`` or ``batch_invariant`` where it cannot
            take effect.
        TypeError: dtypes that do not fit together.

    Reference:
        Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023,
        section 4.1; Dao et al., "Flash-Decoding", 2023.
    """
    check_paged(query, key_cache, value_cache, block_table, seq_lens, None)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    scales = resolve_scales(key_cache, value_cache, k_scale, v_scale)
    call = Call(query, key_cache, value_cache, block_table, seq_lens, None, options, scales)
    how = choose(impl, HAS, query, key_cache, value_cache)
    check_batch_invariant(batch_invariant, how)
    check_num_splits(num_splits, how, batch_invariant)
    if how == "native":
        found = _cpu.attention(call, return_lse=return_lse)
        if found is not None:
            return found
    if how == "triton":
        if may_look(query):
            check_contents(call)
        return _launch_decode.decode(
            call,
            num_splits=num_splits,
            batch_invariant=batch_invariant,
            return_lse=return_lse,
        )
    bounds, lens = check_contents(call)
    assert how != "native", "the C++ kernel refused what the checks find right"
    if how == "torch" and not _torch.needs_eager(options, return_lse):
        return _torch.paged(call, bounds, lens)
    return reference.paged_decode(*call.paged, return_lse=return_lse, **call.keywords)


def paged_decode_work(
    seq_lens: Sequence[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
    kv_itemsize: int | None = None,
    scale_kind: str = "none",
    block_size: int = 16,
) -> Work:
    """Work of one ``paged_decode``: every visible key and value once, with its scale.

    Args:
        seq_lens: context of each sequence.
        num_heads, num_kv_heads, head_dim, window: of the call.
        itemsize: bytes of an element of the query.
        kv_itemsize: bytes of an element of the cache; None for that of the query.
        scale_kind: what a scale of keys and one of values belong to: ``none``, ``tensor``,
            ``head``, ``block`` or ``token``.
        block_size: tokens of a block; only scales by block depend on it.

    >>> paged_decode_work([16], num_heads=4, num_kv_heads=2, head_dim=8, itemsize=2)
    Work(flops=2048, bytes=1152)
    """
    query_lens = [min(n, 1) for n in seq_lens]
    heads = num_heads, num_kv_heads, head_dim
    stored = StoredKeys(itemsize if kv_itemsize is None else kv_itemsize, scale_kind, block_size)
    return attention_work(query_lens, seq_lens, *heads, itemsize, window, stored=stored)
