"""Draw one token per row without sorting: a few groups that can hold the top k, then a race."""

import triton
import triton.language as tl

from blocks.ops._triton.arrival import mix
from blocks.ops._triton.race import draw_from_groups, draw_from_row, first_of
from blocks.ops._triton.threshold import kth_key, kth_key_of_row, load_logits, order_key


@triton.jit
def _group_maxima(
    row_ptr, maxima_ptr, vocab_size,
    NUM_TILES: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr,
):  # fmt: skip
    """The largest logit of every GROUP neighbours, by way of memory; minus infinity beyond."""
    in_tile: tl.constexpr = TILE // GROUP
    for tile in range(NUM_TILES):
        groups = tile * in_tile + tl.arange(0, in_tile)
        token_ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = load_logits(row_ptr, token_ids, vocab_size)
        tl.store(maxima_ptr + groups, tl.max(x, axis=1))
    tl.debug_barrier()  # other threads read them
    groups = tl.arange(0, NUM_GROUPS)
    return tl.load(maxima_ptr + groups, mask=groups < NUM_TILES * in_tile, other=float("-inf"))


@triton.jit
def _of_row(parameter, row, PER_ROW: tl.constexpr, DTYPE: tl.constexpr):
    """A parameter of one row: read where there is one for each, or the number for all."""
    if PER_ROW:
        value = tl.load(parameter + row).to(DTYPE)
    else:
        value = tl.full([], parameter, DTYPE)
    return value


@triton.jit(do_not_specialize=["temperature", "top_k", "top_p", "min_p", "seeds", "positions"])
def _sample_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    stride_logits_row,
    temperature,  # fp32, one number or a pointer to [num_rows], like the next five
    top_k,  # integer
    top_p,  # fp32
    min_p,  # fp32
    seeds,  # integer
    positions,  # integer
    drawn_ptr,  # [num_rows] int64
    maxima_ptr,  # [num_rows, NUM_GROUPS] fp32, scratch
    groups_ptr,  # [num_rows, MAX_GROUPS] int32, scratch
    vocab_size,
    NUM_TILES: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr,
    MAX_GROUPS: tl.constexpr, RACE_TILE: tl.constexpr,
    PER_ROW: tl.constexpr,  # bit i: the i-th of the six parameters is a pointer
):  # fmt: skip
    """One program draws one row.

    The first pass keeps the largest logit of every GROUP neighbours. The k-th largest of those is
    at most the k-th largest logit, so the top k lie in the groups that reach it: about k groups,
    read again into registers, where everything else happens. Rows that ask for no top-k, or whose
    top k lie in more than MAX_GROUPS groups, are raced over as a whole: a pass, and for top-p about
    one more. Thresholds are exact in both. The host guarantees that NUM_GROUPS, a power of two,
    covers the tiles' groups.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits_row
    row_temperature = _of_row(temperature, row, (PER_ROW >> 0) & 1, tl.float32)
    maxima = _group_maxima(
        row_ptr, maxima_ptr + row * NUM_GROUPS, vocab_size, NUM_TILES, TILE, GROUP, NUM_GROUPS
    )
    groups = tl.arange(0, NUM_GROUPS)
    top = tl.max(maxima)
    first = first_of(maxima == top, groups) * GROUP + tl.arange(0, GROUP)
    best = first_of(load_logits(row_ptr, first, vocab_size) == top, first)
    best = tl.where(top == float("-inf"), -1, best)

    if (row_temperature > 0.0) & (best >= 0):
        row_top_k = _of_row(top_k, row, (PER_ROW >> 1) & 1, tl.int64)
        row_top_p = _of_row(top_p, row, (PER_ROW >> 2) & 1, tl.float32)
        row_min_p = _of_row(min_p, row, (PER_ROW >> 3) & 1, tl.float32)
        seed = _of_row(seeds, row, (PER_ROW >> 4) & 1, tl.int64).to(tl.uint64, bitcast=True)
        position = _of_row(positions, row, (PER_ROW >> 5) & 1, tl.int64)
        position = position.to(tl.uint64, bitcast=True)
        golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        stream = mix(mix(seed + golden) + position * golden)
        threshold = tl.full([], -2139095041, tl.int32)  # the key of minus infinity
        highest = order_key(top)
        in_row = groups * GROUP < vocab_size
        kept = in_row
        has_top_k = (row_top_k > 0) & (row_top_k < vocab_size)
        if has_top_k:
            keys = order_key(maxima)
            threshold = kth_key(keys, in_row, row_top_k, threshold, highest)
            kept = in_row & (keys >= threshold)
        num_kept = tl.sum(kept.to(tl.int32))
        if has_top_k & (num_kept <= MAX_GROUPS):
            place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
            list_ptr = groups_ptr + row * MAX_GROUPS
            tl.store(list_ptr + place, groups, mask=kept)
            tl.debug_barrier()
            listed = tl.arange(0, MAX_GROUPS)
            is_group = listed < num_kept
            best = draw_from_groups(
                row_ptr, tl.load(list_ptr + listed, mask=is_group, other=0), is_group, row_top_k,
                threshold, highest, top, row_temperature, row_top_p, row_min_p, stream,
                vocab_size, GROUP,
            )  # fmt: skip
        else:
            if has_top_k:
                threshold = kth_key_of_row(
                    row_ptr, row_top_k, threshold, highest, vocab_size, NUM_TILES, TILE
                )
            best = draw_from_row(
                row_ptr, threshold, highest, top, row_temperature, row_top_p, row_min_p, stream,
                vocab_size, NUM_TILES * (TILE // RACE_TILE), RACE_TILE,
            )  # fmt: skip
    tl.store(drawn_ptr + row, best.to(tl.int64))
