"""``paged_decode``: attention of one new token a sequence over keys in the paged cache."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor

from blocks._checks import check_positive, expects_tensors
from blocks._work import Work
from blocks.attention import _cpu, _launch, _torch, reference
from blocks.attention._count import attention_work
from blocks.attention._layout import check_lengths, check_paged, choose
from blocks.attention._options import resolve_options

HAS = ("native", "triton", "torch", "reference")


@expects_tensors
def paged_decode(
    query: Float[Tensor, "num_seqs num_heads head_dim"],
    key_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    num_splits: int | None = None,
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
        num_splits: slices of the context a sequence is cut into, for ``impl="triton"``; default
            from the number of processors and the shape of the call, without waiting for the
            device. The CPU implementations always cut at fixed positions.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: as ``paged_extend``; also ``num_splits`` where it cannot take effect.
        TypeError: dtypes that do not fit together.

    Reference:
        Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023,
        section 4.1; Dao et al., "Flash-Decoding", 2023.
    """
    check_paged(query, key_cache, value_cache, block_table, seq_lens, None)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    how = choose(impl, HAS, query, key_cache, value_cache)
    check_num_splits(num_splits, how)
    if how == "triton":
        return _launch.decode(
            query,
            key_cache,
            value_cache,
            block_table,
            seq_lens,
            options,
            num_splits=num_splits,
            return_lse=return_lse,
        )
    if how == "native":
        result = _cpu.attention(
            query,
            key_cache,
            value_cache,
            block_table,
            seq_lens,
            None,
            options,
            return_lse=return_lse,
        )
        if result is not None:
            return result
    lens = seq_lens.tolist()
    check_lengths([int(n != 0) for n in lens], lens, block_table, key_cache, window)
    assert how != "native", "the C++ kernel refused what the checks find right"
    if how == "torch" and not _torch.needs_eager(options, return_lse):
        bounds = list(range(len(lens) + 1))
        return _torch.paged(query, key_cache, value_cache, block_table, lens, bounds, options)
    return reference.paged_decode(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        return_lse=return_lse,
        **options._asdict(),
    )


def check_num_splits(num_splits: int | None, how: str) -> None:
    """``num_splits`` is a positive count and only means something to the Triton kernel."""
    check_positive("num_splits", num_splits)
    if num_splits is not None and how != "triton":
        raise ValueError(
            f"num_splits: expected None with impl={how!r}, got {num_splits}; only the Triton "
            "kernel has a choice of splits"
        )


def paged_decode_work(
    seq_lens: Sequence[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
) -> Work:
    """Work of one ``paged_decode``: every visible key and value once.

    >>> paged_decode_work([16], num_heads=4, num_kv_heads=2, head_dim=8, itemsize=2)
    Work(flops=2048, bytes=1152)
    """
    query_lens = [min(n, 1) for n in seq_lens]
    return attention_work(query_lens, seq_lens, num_heads, num_kv_heads, head_dim, itemsize, window)
