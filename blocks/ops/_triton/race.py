"""The draw as a race: every token arrives after a random time, the first that is kept wins."""

import triton
import triton.language as tl

from blocks.ops._triton.arrival import arrival_times
from blocks.ops._triton.threshold import kth_key, load_logits, order_key


@triton.jit
def _weights(x, top, temperature):
    """Probability relative to the likeliest token."""
    is_top = x == top  # also where the top is infinite, and has no difference to itself
    return tl.exp((tl.where(is_top, 0.0, x) - tl.where(is_top, 0.0, top)) / temperature)


@triton.jit
def first_of(found, ids):
    """The lowest id where ``found``."""
    return tl.min(tl.where(found, ids, 0x7FFFFFFF))


@triton.jit
def _race_of_row(
    row_ptr, floor, top, temperature, min_p, stream, vocab_size,
    NUM_TILES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One pass over the tokens whose key is at least ``floor``.

    Their weight altogether (fp64), and who of those allowed by min-p arrives first, with its key.
    """
    mass = tl.zeros([TILE], dtype=tl.float64)
    fastest = float("-inf")
    winner = tl.full([], 0x7FFFFFFF, tl.int32)
    winner_key = tl.full([], -2139095041, tl.int32)
    for tile in range(NUM_TILES):
        token_ids = tile * TILE + tl.arange(0, TILE)
        x = load_logits(row_ptr, token_ids, vocab_size)
        key = order_key(x)
        weight = _weights(x, top, temperature)
        kept = (key >= floor) & (token_ids < vocab_size)
        mass += tl.where(kept, weight, 0.0).to(tl.float64)
        arrival = weight / arrival_times(stream, token_ids)
        speed = tl.where(kept & (weight >= min_p), arrival, -1.0)
        tile_fastest = tl.max(speed)
        if tile_fastest > fastest:
            fastest = tile_fastest
            winner = first_of(speed == tile_fastest, token_ids)
            winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
    return tl.sum(mass), winner, winner_key


@triton.jit
def draw_from_row(
    row_ptr, threshold, highest, top, temperature, top_p, min_p, stream, vocab_size,
    NUM_TILES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The race over all tokens from ``threshold`` on, until its winner is one that top-p keeps.

    Top-p keeps a token if those above it weigh less than wanted. Who wins among more tokens and is
    kept wins among the kept; who is not rules out itself and everything below it.
    """
    mass, winner, winner_key = _race_of_row(
        row_ptr, threshold, top, temperature, min_p, stream, vocab_size, NUM_TILES, TILE
    )
    if top_p < 1.0:
        wanted = top_p.to(tl.float64) * mass
        undecided = winner_key < highest
        while undecided:
            above, second, second_key = _race_of_row(
                row_ptr, winner_key + 1, top, temperature, min_p, stream, vocab_size,
                NUM_TILES, TILE,
            )  # fmt: skip
            undecided = above >= wanted
            winner = tl.where(undecided, second, winner)
            winner_key = tl.where(undecided, second_key, winner_key)
            undecided = undecided & (winner_key < highest)
    return winner


@triton.jit
def draw_from_groups(
    row_ptr, groups, is_group, top_k, low, highest, top, temperature, top_p, min_p, stream,
    vocab_size, GROUP: tl.constexpr,
):  # fmt: skip
    """The same over groups that hold the top k, all in registers."""
    token_ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    valid = is_group[:, None] & (token_ids < vocab_size)
    x = load_logits(row_ptr, tl.where(valid, token_ids, vocab_size), vocab_size)
    key = order_key(x)
    kept = valid & (key >= kth_key(key, valid, top_k, low, highest))
    weight = _weights(x, top, temperature)
    wide = tl.where(kept, weight, 0.0).to(tl.float64)
    arrival = weight / arrival_times(stream, token_ids)
    speed = tl.where(kept & (weight >= min_p), arrival, -1.0)
    winner = first_of(speed == tl.max(speed), token_ids)
    winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
    if top_p < 1.0:
        wanted = top_p.to(tl.float64) * tl.sum(wide)
        undecided = winner_key < highest
        while undecided:
            above = key > winner_key
            undecided = tl.sum(tl.where(above, wide, 0.0)) >= wanted
            rest = tl.where(above, speed, -1.0)
            second = first_of(rest == tl.max(rest), token_ids)
            winner = tl.where(undecided, second, winner)
            winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
            undecided = undecided & (winner_key < highest)
    return winner
