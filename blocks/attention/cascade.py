"""``cascade_decode``: decoding sequences that begin alike, reading what they share once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

from blocks._checks import check_dtype, check_same_device, check_shape, expects_tensors, fail
from blocks._work import Work
from blocks.attention import _cpu, _launch_rows, reference
from blocks.attention._call import Call, check_contents
from blocks.attention._count import StoredKeys, attention_work, read_keys
from blocks.attention._layout import (
    check_batch_invariant,
    check_bounds,
    check_paged,
    choose,
    may_look,
)
from blocks.attention._options import resolve_options
from blocks.attention._scales import resolve_scales
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "reference")


class SharedPrefix(NamedTuple):
    """Groups of neighbouring sequences, and how many leading tokens those of a group share.

    cu_groups: int32 [num_groups + 1], running sums of the numbers of sequences, from 0 to num_seqs.
    lens: int32 [num_groups], tokens the sequences of a group have in the same blocks; 0 for none.
    """

    cu_groups: Tensor
    lens: Tensor


@expects_tensors
def cascade_decode(
    query: Float[Tensor, "num_seqs num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    prefixes: Sequence[SharedPrefix],
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
    """Compute what ``paged_decode`` computes, reading the blocks sequences share once a group.

    The other arguments are those of ``paged_decode``, whole block tables and lengths included, so a
    caller may turn to either at any step. ``prefixes`` say what is shared: all queries of a group
    are the rows of one product with the keys of its prefix, read through the table row of its first
    sequence; what comes after is attended to one sequence at a time; and the parts are merged by
    LSE. Positions are those of the whole sequence, so window and ALiBi do not notice the cut.
    ``cascade_pays`` says when this is worth its additional launch.

    Args:
        query, key_cache, value_cache, block_table, seq_lens: see ``paged_decode``.
        prefixes: one for each level of sharing, the widest groups (and shortest prefixes) first: a
            system prompt of all, then the document some of them ask about. Groups of one level lie
            inside groups of the level before. A prefix may end anywhere, also inside a block or
            beyond the end of a sequence, which then sees its own part of it.
        scale, window, softcap, sinks, alibi_slopes, return_lse, impl: see ``prefill``.
        k_scale, v_scale: see ``paged_extend``.
        batch_invariant: as in ``paged_decode``: a row's bits depend on its own query and context
            and on where the prefixes end, not on how many sequences share them.

    Returns:
        Output of query's shape and dtype, or ``AttentionOutput(output, lse)``.

    Raises:
        ValueError: as ``paged_decode``; where the host may look also groups that do not cut up the
            sequences or are not nested, and full blocks of a prefix that are not the same blocks.
        TypeError: dtypes that do not fit together.

    Reference:
        Ye et al., "Cascade Inference", 2024; Juravsky et al., "Hydragen", 2024, section 3.
    """
    check_paged(query, key_cache, value_cache, block_table, seq_lens, None)
    _check_prefixes(query, prefixes)
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    scales = resolve_scales(key_cache, value_cache, k_scale, v_scale)
    call = Call(query, key_cache, value_cache, block_table, seq_lens, None, options, scales)
    how = choose(impl, HAS, query, key_cache, value_cache)
    check_batch_invariant(batch_invariant, how)
    if may_look(query):
        check_groups(call, prefixes)
        if how != "native":  # the C++ kernel looks at lengths and block ids itself
            check_blocks(call, prefixes)
    if how == "reference" or not len(seq_lens):
        settings = call.keywords
        return reference.cascade_decode(*call.paged, prefixes, return_lse=return_lse, **settings)
    if how == "native":
        state = _native(call, prefixes)
    else:
        state = _launch_rows.cascade_decode(call, prefixes, batch_invariant)
    return state if return_lse else state.output


def _native(call: Call, prefixes: Sequence[SharedPrefix]) -> AttentionOutput:
    """The C++ kernel once a level and once for the rest, in float32, and a merge."""
    shape = (len(prefixes) + 1, *call.query.shape)
    outputs, lses = torch.empty(shape, dtype=torch.float32), torch.empty(shape[:-1])
    *parts, rest = zip(outputs, lses, strict=True)
    done = []
    for part, (level, starts, first) in zip(parts, levels(call, prefixes), strict=True):
        level = level._replace(block_table=call.table[first])
        rows = _cpu.Rows(ends=call.seq_lens.contiguous(), starts=starts, wide=True)
        how = {"rows": rows, "return_lse": True, "into": part}
        done.append(_cpu.attention(level, causal=False, **how))
    rows = _cpu.Rows(starts=shared_lens(prefixes, call.seq_lens), wide=True)
    done.append(_cpu.attention(call, rows=rows, return_lse=True, into=rest))
    if not all(done):
        check_blocks(call, prefixes)
        raise AssertionError("the C++ kernel refused what the checks find right")
    return _cpu.merge(outputs, lses, call.query.dtype)


def levels(call: Call, prefixes: Sequence[SharedPrefix]) -> Iterator[tuple[Call, Tensor, Tensor]]:
    """Each level as a call of its groups, which keeps the table of all sequences; the first key of
    each group; and its first sequence. No waiting."""
    alone = call.options._replace(sinks=None)  # the sink joins once, with the rest
    for i, (cu_groups, lens) in enumerate(prefixes):
        first = cu_groups[:-1].clamp_max(max(0, len(call.seq_lens) - 1))
        level = call._replace(seq_lens=lens, cu_seqlens_q=cu_groups, options=alone)
        yield level, shared_lens(prefixes[:i], call.seq_lens)[first], first


def shared_lens(prefixes: Sequence[SharedPrefix], seq_lens: Tensor) -> Tensor:
    """Tokens of each sequence that some prefix holds: [num_seqs]."""
    found = torch.zeros_like(seq_lens)
    sequences = torch.arange(len(seq_lens), device=seq_lens.device)
    for prefix in prefixes:
        group = torch.searchsorted(prefix.cu_groups, sequences, right=True) - 1
        found = torch.maximum(found, prefix.lens[group.clamp_min(0)])
    return found


def _check_prefixes(query: Tensor, prefixes: Sequence[SharedPrefix]) -> None:
    for i, prefix in enumerate(prefixes):
        if not isinstance(prefix, SharedPrefix):
            found = type(prefix).__name__
            raise TypeError(f"prefixes[{i}]: expected a SharedPrefix, got {found}")
        cu_groups, lens = prefix
        check_shape(f"prefixes[{i}].cu_groups", cu_groups, ("num_groups + 1",))
        check_dtype(f"prefixes[{i}].cu_groups", cu_groups, (torch.int32,))
        hint = "one prefix a group"
        check_shape(f"prefixes[{i}].lens", lens, (cu_groups.shape[0] - 1,), hint)
        check_dtype(f"prefixes[{i}].lens", lens, (torch.int32,))
        check_same_device(query=query, cu_groups=cu_groups, lens=lens)
        if cu_groups.shape[0] < 2:
            raise fail(f"prefixes[{i}].cu_groups", "at least one group", "none", "leave it out")


def check_groups(call: Call, prefixes: Sequence[SharedPrefix]) -> None:
    """Groups cut up the sequences, inside those of the level before, and share full blocks."""
    block_table, block_size, window = call.table, call.key.shape[1], call.options.window
    num_seqs, capacity = call.num_seqs, call.capacity
    lens = call.seq_lens.tolist()
    outer: set[int] = set()
    for i, prefix in enumerate(prefixes):
        bounds = check_bounds(f"prefixes[{i}].cu_groups", prefix.cu_groups, num_seqs)
        if not outer <= set(bounds):
            between = sorted(outer - set(bounds))
            hint = "groups of a level lie inside groups of the level before"
            raise fail(f"prefixes[{i}].cu_groups", f"bounds at {between} too", bounds[:20], hint)
        outer = set(bounds)
        for g, shared in enumerate(prefix.lens.tolist()):
            if not 0 <= shared <= capacity:
                raise fail(f"prefixes[{i}].lens[{g}]", f"from 0 to {capacity} tokens", shared)
            seen = first_seen(lens[bounds[g] : bounds[g + 1]], window) // block_size
            rows = block_table[bounds[g] : bounds[g + 1], seen : max(seen, shared // block_size)]
            if len(rows) > 1 and rows.numel() and not bool((rows == rows[0]).all()):
                s = bounds[g] + int((rows != rows[0]).any(1).nonzero()[0])
                same = f"the same blocks for sequences {bounds[g]} to {bounds[g + 1] - 1}"
                what = f"tokens in {same}"
                raise fail(f"prefixes[{i}].lens[{g}]", what, f"others in block_table[{s}]")


def first_seen(lens: list[int], window: int | None) -> int:
    """First position that some sequence of a group sees."""
    lens = [n for n in lens if n > 0]
    return 0 if window is None or not lens else max(0, min(lens) - window)


def check_blocks(call: Call, prefixes: Sequence[SharedPrefix]) -> None:
    """Lengths fit the table, and every block to be read exists; the groups are right already."""
    _, lens = check_contents(call)
    block_table, (num_blocks, block_size) = call.table, call.key.shape[:2]
    for i, prefix in enumerate(prefixes):
        bounds = prefix.cu_groups.tolist()
        for g, shared in enumerate(prefix.lens.tolist()):
            group = lens[bounds[g] : bounds[g + 1]]
            seen = first_seen(group, call.options.window) // block_size
            read = block_table[bounds[g] : bounds[g] + 1, seen : -(-shared // block_size)]
            if (
                any(group)
                and read.numel()
                and not 0 <= int(read.min()) <= int(read.max()) < num_blocks
            ):
                what = f"tokens in blocks of block_table[{bounds[g]}] with ids in [0, {num_blocks})"
                raise fail(f"prefixes[{i}].lens[{g}]", what, read[0].tolist()[-8:])


def cascade_pays(
    num_sharing: int,
    shared_len: int,
    *,
    num_kv_heads: int,
    head_dim: int,
    kv_itemsize: int,
    launch_bytes: int = 16 << 20,
) -> bool:
    """Whether sharing a prefix is worth a level of ``cascade_decode``.

    Without it the prefix is read once for each sequence, so ``(num_sharing - 1)`` readings are
    saved. A saved byte counts half, as sequences that run side by side find some of the prefix in
    the cache. A level costs one more launch and the merging of one more state: about 4 us, in which
    a device of 4 TB/s reads ``launch_bytes``.

    Args:
        num_sharing: sequences of the group.
        shared_len: tokens they share.
        num_kv_heads, head_dim, kv_itemsize: of the cache, on this device.
        launch_bytes: what the device reads in the time a level costs; about 8 MiB on a CPU.

    >>> cascade_pays(64, 16384, num_kv_heads=8, head_dim=128, kv_itemsize=2)
    True
    >>> cascade_pays(4, 512, num_kv_heads=8, head_dim=128, kv_itemsize=2)
    False
    """
    prefix_bytes = 2 * shared_len * num_kv_heads * head_dim * kv_itemsize
    return (num_sharing - 1) * prefix_bytes // 2 > launch_bytes


def cascade_decode_work(
    seq_lens: Sequence[int],
    groups: Sequence[tuple[int, int]],
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
    """Work of one ``cascade_decode`` with one level of sharing: a prefix is read once a group.

    Args:
        seq_lens: context of each sequence.
        groups: (number of sequences, shared tokens) of each group, in order.
        num_heads, num_kv_heads, head_dim, itemsize, window: see ``paged_decode_work``.
        kv_itemsize, scale_kind, block_size: see ``paged_decode_work``.

    >>> sizes = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "itemsize": 2}
    >>> cascade_decode_work([20, 20], [(2, 16)], **sizes).bytes  # 2 x (16 + 4 + 4) keys and values
    832
    """
    heads = num_heads, num_kv_heads, head_dim
    stored = StoredKeys(itemsize if kv_itemsize is None else kv_itemsize, scale_kind, block_size)
    query_lens = [min(n, 1) for n in seq_lens]
    whole = attention_work(query_lens, seq_lens, *heads, itemsize, window, stored=stored)
    first, saved, saved_scales = 0, 0, 0
    for count, shared in groups:
        lens = seq_lens[first : first + count]
        first += count
        read = [max(0, min(shared, n) - (n - read_keys(1, n, window))) for n in lens]
        again = sorted(read)[:-1]  # all but the longest of these readings
        saved += sum(again)
        if scale_kind in ("block", "token"):
            saved_scales += stored.scale_bytes(again, num_kv_heads)
    return Work(
        flops=whole.flops,
        bytes=whole.bytes - 2 * saved * num_kv_heads * head_dim * stored.itemsize - saved_scales,
    )
