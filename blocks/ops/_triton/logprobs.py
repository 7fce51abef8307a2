"""Log-probabilities of one token a row and of its likeliest, in one pass over the logits."""

import triton
import triton.language as tl

from blocks.ops._triton.race import first_of
from blocks.ops._triton.threshold import kth_key, load_logits, order_key


@triton.jit
def _logprobs_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    stride_logits_row,
    token_ids_ptr,  # [num_rows] int64
    chosen_ptr,  # [num_rows] fp32
    rank_ptr,  # [num_rows] int64
    top_ptr,  # [num_rows, num_top] fp32
    top_ids_ptr,  # [num_rows, num_top] int64
    maxima_ptr,  # [num_rows, NUM_GROUPS] fp32, scratch
    groups_ptr,  # [num_rows, MAX_GROUPS] int32, scratch
    vocab_size, num_top,
    NUM_TILES: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
):  # fmt: skip
    """One program owns one row: a running sum of exponentials, a rank, and the largest of groups.

    The num_top likeliest lie in the groups whose largest is above the num_top-th largest of these,
    and in the first num_top of those that equal it; they are read again, into registers, and taken
    out one by one, the lowest id first among equals. The host guarantees that MAX_GROUPS holds them
    (at least 2 num_top, or all there are) and that NUM_GROUPS covers the tiles' groups.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits_row
    token = tl.load(token_ids_ptr + row)
    in_row = (token >= 0) & (token < vocab_size)
    chosen = tl.load(row_ptr + token, mask=in_row, other=float("nan")).to(tl.float32)
    in_tile: tl.constexpr = TILE // GROUP
    largest = float("-inf")
    total = tl.zeros([in_tile, GROUP], dtype=tl.float32)
    likelier = tl.zeros([in_tile, GROUP], dtype=tl.int32)
    for tile in range(NUM_TILES):
        groups = tile * in_tile + tl.arange(0, in_tile)
        token_ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(row_ptr + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
        x = x.to(tl.float32)
        maxima = tl.max(tl.where(x != x, float("-inf"), x), axis=1)
        tl.store(maxima_ptr + row * NUM_GROUPS + groups, maxima)
        before, largest = largest, tl.maximum(largest, tl.max(maxima))
        # An infinite shift would turn the sum into a NaN; nothing needs one that large.
        shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
        kept = tl.where(tl.abs(before) == float("inf"), 0.0, before)
        total = total * tl.exp(kept - shift) + tl.exp(x - shift)
        likelier += (x > chosen).to(tl.int32)
    shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
    log_total = shift + tl.log(tl.sum(total))
    tl.store(chosen_ptr + row, chosen - log_total)
    tl.store(rank_ptr + row, tl.sum(likelier).to(tl.int64))

    if num_top > 0:
        tl.debug_barrier()  # other threads wrote the maxima
        groups = tl.arange(0, NUM_GROUPS)
        in_tiles = groups < NUM_TILES * in_tile
        maxima = tl.load(maxima_ptr + row * NUM_GROUPS + groups, mask=in_tiles, other=0.0)
        keys = order_key(tl.where(maxima == 0.0, 0.0, maxima))
        valid = groups * GROUP < vocab_size
        last = kth_key(keys, valid, num_top, tl.full([], -2139095041, tl.int32), order_key(largest))
        equal = valid & (keys == last)
        kept = (valid & (keys > last)) | (equal & (tl.cumsum(equal.to(tl.int32)) <= num_top))
        num_kept = tl.sum(kept.to(tl.int32))
        place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
        list_ptr = groups_ptr + row * MAX_GROUPS
        tl.store(list_ptr + place, groups, mask=kept & (place < MAX_GROUPS))
        tl.debug_barrier()
        listed = tl.arange(0, MAX_GROUPS)
        is_group = listed < num_kept
        found = tl.load(list_ptr + listed, mask=is_group, other=0)
        token_ids = found[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        left = is_group[:, None] & (token_ids < vocab_size)
        x = load_logits(row_ptr, tl.where(left, token_ids, vocab_size), vocab_size)
        for at in range(num_top):
            best = tl.max(tl.where(left, x, float("-inf")))
            best_id = first_of(left & (x == best), token_ids)
            tl.store(top_ptr + row * num_top + at, best - log_total)
            tl.store(top_ids_ptr + row * num_top + at, best_id.to(tl.int64))
            left = left & (token_ids != best_id)
