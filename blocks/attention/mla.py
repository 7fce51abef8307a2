"""``mla_decode``: multi-head latent attention of one new token a sequence over paged latents."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from blocks._checks import (
    check,
    check_dtype,
    check_same_device,
    check_shape,
    expects_tensors,
    fail,
)
from blocks._work import Work
from blocks.attention import _cpu, _launch_mla, reference
from blocks.attention._call import Call, check_contents
from blocks.attention._count import read_keys, visible_pairs
from blocks.attention._layout import REFERENCE_DTYPES, check_num_splits, choose
from blocks.attention._options import resolve_options
from blocks.attention._scales import NO_SCALES, QUANTISED, Scales, check_scale
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "reference")


@expects_tensors
def mla_decode(
    query: Float[Tensor, "num_seqs num_heads row_dim"],
    latent_cache: Shaped[Tensor, "num_blocks block_size row_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    *,
    scale: float,
    latent_dim: int = 512,
    latent_scale: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    num_splits: int | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
    impl: str | None = None,
) -> Any:
    """Compute attention of one new token a sequence over a cache of latents shared by all heads.

    A cached row is a latent of ``latent_dim`` numbers followed by one rotated key part. Every head
    scores against the whole row and sums the latents, so a token costs one row of cache however
    many heads there are. The projections of keys and values are absorbed by the caller: the
    query's first part is ``q_nope @ W_UK`` of its head, and the head's value is
    ``output @ W_UV``.

    Args:
        query: [latent part, rotated part] a head; only the last dimension need be contiguous.
        latent_cache: rows of all blocks, the new token's already written; last dimension
            contiguous, the other strides free.
        block_table, seq_lens: as in ``paged_decode``; a sequence of length 0 gets zeros and -inf.
        scale: multiplies scores. No default: it is ``1 / sqrt(nope_dim + rope_dim)`` of the model
            (times any factor of its rotary scaling), which the absorbed query no longer shows.
        latent_dim: leading numbers of a row that are its value.
        latent_scale: float32 scales of a float8_e4m3fn or int8 cache, ``row = stored * scale``: one
            number, [num_blocks] or [num_blocks, block_size].
        window, softcap, sinks, alibi_slopes, return_lse: as in ``prefill``.
        num_splits: as in ``paged_decode``.
        batch_invariant: with ``impl="triton"``, cut the context at fixed positions, so that a row's
            bits do not depend on its batch. The CPU implementations always do.
        impl: ``reference``, ``native`` (C++, CPU) or ``triton``.

    Returns:
        [num_seqs, num_heads, latent_dim] in the query's dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: shapes, lengths or settings that do not fit together.
        TypeError: dtypes that do not fit together.

    Example:
        >>> import torch
        >>> query, cache = torch.randn(1, 4, 80), torch.randn(3, 16, 80)
        >>> table = torch.tensor([[2, 1]], dtype=torch.int32)
        >>> lens = torch.tensor([20], dtype=torch.int32)
        >>> mla_decode(query, cache, table, lens, scale=0.125, latent_dim=64).shape
        torch.Size([1, 4, 64])

    Reference:
        DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C (absorbed projections).
    """
    _check(query, latent_cache, block_table, seq_lens, latent_dim)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    rows = latent_cache.unsqueeze(2)  # one key head; values are the rows' latents
    values = rows.narrow(3, 0, latent_dim)
    head_scale = reference.scale_of_one_head(latent_scale, latent_cache)
    check_scale("latent_scale", head_scale, rows)
    scales = NO_SCALES if head_scale is None else Scales(head_scale, head_scale)
    call = Call(query, rows, values, block_table, seq_lens, None, options, scales)
    how = choose(impl, HAS, query, latent_cache)
    check_num_splits(num_splits, how, batch_invariant)
    if query.device.type == "cpu":
        check_contents(call)
    if how == "triton":
        return _launch_mla.decode(
            call,
            num_splits=num_splits,
            batch_invariant=batch_invariant,
            return_lse=return_lse,
        )
    if how == "native":
        state = _cpu.attention(call, return_lse=True)
        output = state.output.narrow(2, 0, latent_dim).contiguous()
        return AttentionOutput(output, state.lse) if return_lse else output
    latents = {"latent_dim": latent_dim, "latent_scale": latent_scale, **options._asdict()}
    paged = query, latent_cache, block_table, seq_lens
    return reference.mla_decode(*paged, return_lse=return_lse, **latents)


def mla_decode_work(
    seq_lens: Sequence[int],
    *,
    num_heads: int,
    itemsize: int,
    latent_dim: int = 512,
    rope_dim: int = 64,
    window: int | None = None,
    kv_itemsize: int | None = None,
) -> Work:
    """Work of one ``mla_decode``: every visible row once, two products a head.

    ``kv_itemsize`` is that of the cache where it is not the queries'.

    >>> mla_decode_work([10], num_heads=2, itemsize=2, latent_dim=8, rope_dim=4)
    Work(flops=800, bytes=320)
    """
    row_dim = latent_dim + rope_dim
    new = [min(n, 1) for n in seq_lens]
    pairs = sum(visible_pairs(q, n, window) for q, n in zip(new, seq_lens, strict=True))
    rows = sum(read_keys(q, n, window) for q, n in zip(new, seq_lens, strict=True))
    queries = sum(new) * num_heads * (row_dim + latent_dim)
    return Work(
        flops=2 * pairs * num_heads * (row_dim + latent_dim),
        bytes=rows * row_dim * (kv_itemsize or itemsize) + queries * itemsize,
    )


def _check(
    query: Tensor, latent_cache: Tensor, block_table: Tensor, seq_lens: Tensor, latent_dim: int
) -> None:
    """Check everything that needs no look at tensor contents."""
    check_shape("query", query, ("num_seqs", "num_heads", "row_dim"))
    num_seqs, num_heads, row_dim = query.shape
    check_shape("latent_cache", latent_cache, ("num_blocks", "block_size", row_dim))
    check_shape("seq_lens", seq_lens, (num_seqs,), "one length per row of query")
    check_shape("block_table", block_table, (num_seqs, "max_blocks"), "one row per sequence")
    check(num_heads > 0, "num_heads", "above 0", num_heads)
    check(latent_cache.shape[1] > 0, "block_size", "above 0", 0)
    hint = "a row is a latent and then its rotated part"
    check(0 < latent_dim < row_dim, "latent_dim", f"from 1 to {row_dim - 1}", latent_dim, hint)
    check_dtype("query", query, REFERENCE_DTYPES)
    check_dtype("latent_cache", latent_cache, (query.dtype, *QUANTISED), "the dtype of query")
    check_dtype("block_table", block_table, (torch.int32,))
    check_dtype("seq_lens", seq_lens, (torch.int32,))
    check_same_device(
        query=query, latent_cache=latent_cache, block_table=block_table, seq_lens=seq_lens
    )
    if latent_cache.stride(2) != 1:
        raise fail("latent_cache last stride", 1, latent_cache.stride(2), "call .contiguous() once")
