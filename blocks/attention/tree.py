"""``tree_decode``: attention of trees of draft tokens over keys in the paged cache."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from blocks._checks import check, check_dtype, check_same_device, check_shape, expects_tensors, fail
from blocks._work import Work
from blocks.attention import _cpu, _launch_rows, reference
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

HAS = ("native", "triton", "reference")
MAX_DRAFTS = 64


@expects_tensors
def tree_decode(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    tree_mask: Int64[Tensor, " num_tokens"],
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
    """Compute attention of each sequence's draft tokens, which form a tree, over its context.

    Speculative decoding verifies several guesses of the next tokens in one call. The last
    ``query_len`` cached tokens of a sequence are its draft tokens, in any order that puts a parent
    before its children; what came before them is committed. A draft token sees all committed
    tokens, its ancestors and itself, as if the path from the root to it had been decoded alone: its
    position, which window and ALiBi count from, is the number of committed tokens plus its depth.

    The context is cut into splits as in ``paged_decode``, and all draft tokens share one read of
    it, so a few of them cost about as much as one.

    Args:
        query: draft tokens of all sequences, packed; at most 64 a sequence (0 is allowed).
        key_cache, value_cache, block_table, k_scale, v_scale: see ``paged_extend``.
        seq_lens: context of each sequence, its draft tokens included.
        cu_seqlens_q: running sums of the numbers of draft tokens, from 0.
        tree_mask: bit ``j`` of row ``i`` says that draft token ``i`` sees draft token ``j`` of the
            same sequence: set for itself and its ancestors, clear for all others. 64 tokens fit
            the bits of an int64, so a mask is as small as the tokens it is about;
            ``tree_mask_from_parents`` makes it.
        scale, window, softcap, sinks, alibi_slopes, return_lse, impl: see ``prefill``.
        num_splits, batch_invariant: see ``paged_decode``.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: as ``paged_extend``; where the host may look also masks that name a later token,
            or leave out the token itself.
        TypeError: dtypes that do not fit together.

    Reference:
        Miao et al., "SpecInfer", 2024, section 4 (tree attention); Cai et al., "Medusa", 2024.
    """
    check_paged(query, key_cache, value_cache, block_table, seq_lens, cu_seqlens_q)
    check_shape("tree_mask", tree_mask, (query.shape[0],), "one row of bits a draft token")
    check_dtype("tree_mask", tree_mask, (torch.int64,), "tree_mask_from_parents makes it")
    check_same_device(query=query, tree_mask=tree_mask)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    scales = resolve_scales(key_cache, value_cache, k_scale, v_scale)
    call = Call(query, key_cache, value_cache, block_table, seq_lens, cu_seqlens_q, options, scales)
    how = choose(impl, HAS, query, key_cache, value_cache)
    check_num_splits(num_splits, how, batch_invariant)
    check_batch_invariant(batch_invariant, how)
    if how == "native":
        rows = _cpu.Rows(tree=tree_mask.contiguous())
        found = _cpu.attention(call, rows=rows, causal=False, return_lse=return_lse)
        if found is not None:
            return found
    if how != "triton" or may_look(query):
        bounds, _ = check_contents(call)
        check_trees(tree_mask, [b - a for a, b in itertools.pairwise(bounds)])
    assert how != "native", "the C++ kernel refused what the checks find right"
    if how == "triton":
        return _launch_rows.tree_decode(
            call,
            tree_mask,
            num_splits=num_splits,
            batch_invariant=batch_invariant,
            return_lse=return_lse,
        )
    trees = cu_seqlens_q, tree_mask
    return reference.tree_decode(*call.paged, *trees, return_lse=return_lse, **call.keywords)


def check_trees(tree_mask: Tensor, query_lens: list[int]) -> None:
    """Every draft token sees itself, and of the others only earlier ones."""
    for s, query_len in enumerate(query_lens):
        if query_len > MAX_DRAFTS:
            raise fail(f"draft tokens of sequence {s}", f"at most {MAX_DRAFTS}", query_len)
    node = torch.tensor([t for n in query_lens for t in range(n)], device=tree_mask.device)
    own = tree_mask >> node.to(torch.int64)
    bad = torch.where(node == 63, own != -1, own != 1).nonzero()
    if len(bad):
        i = int(bad[0])
        t = int(node[i])
        hint = f"token {t} of its sequence sees itself and earlier ones: bits 0 to {t}"
        raise fail(f"tree_mask[{i}]", f"bit {t} set and none above", hex(int(tree_mask[i])), hint)


@expects_tensors
def tree_mask_from_parents(
    parents: Int32[Tensor, " num_tokens"], cu_seqlens_q: Int32[Tensor, " num_bounds"]
) -> Int64[Tensor, " num_tokens"]:
    """Make the ``tree_mask`` of ``tree_decode`` from each draft token's parent.

    Runs on the tensors' device without waiting for it.

    Args:
        parents: index of the parent among the draft tokens of the same sequence; -1 for a root (a
            child of the last committed token). A parent comes before its children.
        cu_seqlens_q: running sums of the numbers of draft tokens, from 0; at most 64 a sequence.

    Raises:
        ValueError: values that are no trees; on an accelerator they are not looked at.

    Example:
        >>> parents = torch.tensor([-1, 0, 0, 1], dtype=torch.int32)  # 0 -> (1 -> 3, 2)
        >>> mask = tree_mask_from_parents(parents, torch.tensor([0, 4], dtype=torch.int32))
        >>> [f"{row:04b}" for row in mask.tolist()]
        ['0001', '0011', '0101', '1011']
    """
    check_shape("parents", parents, ("num_tokens",))
    check_dtype("parents", parents, (torch.int32,))
    check_shape("cu_seqlens_q", cu_seqlens_q, ("num_seqs + 1",))
    check_dtype("cu_seqlens_q", cu_seqlens_q, (torch.int32,))
    check_same_device(parents=parents, cu_seqlens_q=cu_seqlens_q)
    if may_look(parents) and not torch.compiler.is_compiling():
        _check_parents(parents.tolist(), cu_seqlens_q.tolist())
    token = torch.arange(parents.shape[0], device=parents.device)
    sequence = torch.searchsorted(cu_seqlens_q, token, right=True, out_int32=True) - 1
    start = cu_seqlens_q[sequence.clamp_min(0)].long()  # [num_tokens]
    mask = torch.ones_like(token) << (token - start)
    ancestor = torch.where(parents < 0, token, start + parents)  # a root points at itself
    for _ in range(6):  # 1, 2, 4, ... 32 generations at a time
        mask = mask | mask[ancestor]
        ancestor = ancestor[ancestor]
    return mask


def _check_parents(parents: list[int], bounds: list[int]) -> None:
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    whole = bool(bounds) and bounds[0] == 0 and bounds[-1] == len(parents)
    wanted = f"running sums from 0 to {len(parents)}, at most {MAX_DRAFTS} tokens a sequence"
    ok = whole and all(0 <= size <= MAX_DRAFTS for size in sizes)
    check(ok, "cu_seqlens_q", wanted, bounds)
    for start, size in zip(bounds[:-1], sizes, strict=True):
        for i, parent in enumerate(parents[start : start + size]):
            wanted = f"-1 or an earlier token of its sequence (below {i})"
            check(-1 <= parent < i, f"parents[{start + i}]", wanted, parent)


def tree_decode_work(
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
    """Work of one ``tree_decode``: every key and value once; the pairs of a chain, which has most.

    The arguments are those of ``paged_decode_work``, with the number of draft tokens a sequence.
    """
    heads = num_heads, num_kv_heads, head_dim
    stored = StoredKeys(itemsize if kv_itemsize is None else kv_itemsize, scale_kind, block_size)
    return attention_work(query_lens, seq_lens, *heads, itemsize, window, stored=stored)
