"""``paged_extend``: attention of several new tokens a sequence over keys in the paged cache."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from blocks._checks import expects_tensors
from blocks._work import Work
from blocks.attention import _cpu, _launch_attend, _torch, reference
from blocks.attention._call import Call, check_contents
from blocks.attention._count import StoredKeys, attention_work
from blocks.attention._layout import check_batch_invariant, check_paged, choose, may_look
from blocks.attention._options import resolve_options
from blocks.attention._scales import resolve_scales

HAS = ("native", "triton", "torch", "reference")


@expects_tensors
def paged_extend(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
    impl: str | None = None,
) -> Any:
    """Compute causal attention of each sequence's new tokens over its cached context.

    The new tokens' keys and values are already in the cache (``kv.write_kv`` runs first). Query
    ``i`` of a sequence sits at position ``seq_len - query_len + i``. A batch may mix prompt
    chunks, decodes (one new token) and sequences with none. Keys are read through the block table
    where they lie; blocks and slots no query sees are never read.

    On the CPU a row's result depends on its own sequence alone and not on how its context was cut
    into calls: the same bits come out of any batch, any chunking, and ``paged_decode``.

    Args:
        query: new tokens of all sequences, packed; only head_dim need be contiguous.
        key_cache: one layer's keys, of the query's dtype, float8_e4m3fn or int8; head_dim
            contiguous.
        value_cache: one layer's values, laid out as the keys.
        block_table: physical block of each logical block; entries past the context are not read.
        seq_lens: context of each sequence, new tokens included; 0 for an unused row.
        cu_seqlens_q: running sums of the numbers of new tokens, from 0.
        scale, window, softcap, sinks, alibi_slopes, return_lse, impl: see ``prefill``.
        k_scale: what stored keys are multiplied by, float32 and contiguous: ``[]`` or ``[1]``,
            ``[num_kv_heads]``, ``[num_blocks, num_kv_heads]`` (a block and head) or ``[num_blocks,
            block_size, num_kv_heads]`` (a token and head). int8 caches need it; float8 ones are
            what they say without it; others take none. Scales of slots no query sees are not read.
        v_scale: the same of values, of a kind of its own.
        batch_invariant: use the same tiles and one masked loop whatever the call looks like, so
            that a row's bits depend on its own query and context alone: the same from any batch
            and any chunking of the prompt into ``paged_extend`` calls. ``native`` always does.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: shapes or settings that do not fit; on the CPU (and with ``BLOCKS_VALIDATE=1``)
            also lengths beyond the block table and block ids outside the cache, before anything
            outside it is read.
        TypeError: dtypes that do not fit together.

    Reference:
        Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023,
        section 4.1; Agrawal et al., "Sarathi-Serve", 2024, for chunks mixed with decodes.
    """
    check_paged(query, key_cache, value_cache, block_table, seq_lens, cu_seqlens_q)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    scales = resolve_scales(key_cache, value_cache, k_scale, v_scale)
    call = Call(query, key_cache, value_cache, block_table, seq_lens, cu_seqlens_q, options, scales)
    how = choose(impl, HAS, query, key_cache, value_cache)
    check_batch_invariant(batch_invariant, how)
    if how == "native":
        found = _cpu.attention(call, return_lse=return_lse)
        if found is not None:
            return found
    if how == "triton":
        if may_look(query):
            check_contents(call)
        return _launch_attend.attend(call, return_lse=return_lse, batch_invariant=batch_invariant)
    bounds, lens = check_contents(call)
    assert how != "native", "the C++ kernel refused what the checks find right"
    if how == "torch" and not _torch.needs_eager(options, return_lse):
        return _torch.paged(call, bounds, lens)
    settings = call.keywords
    return reference.paged_extend(*call.paged, cu_seqlens_q, return_lse=return_lse, **settings)


def paged_extend_work(
    query_lens: Sequence[int],
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
    """Work of one ``paged_extend``: visible pairs only, every visible key and value once.

    The arguments are those of ``paged_decode_work``, with the number of new tokens a sequence.
    """
    heads = num_heads, num_kv_heads, head_dim
    stored = StoredKeys(itemsize if kv_itemsize is None else kv_itemsize, scale_kind, block_size)
    return attention_work(query_lens, seq_lens, *heads, itemsize, window, stored=stored)
