"""Logits as ordered integers, and the k-th largest of them by bisection."""

import triton
import triton.language as tl


@triton.jit
def load_logits(row_ptr, token_ids, vocab_size):
    """Logits of a tile in fp32; NaN and what lies past the vocabulary are minus infinity."""
    x = tl.load(row_ptr + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    x = x.to(tl.float32)
    return tl.where(x != x, float("-inf"), tl.where(x == 0.0, 0.0, x))  # one zero, not two


@triton.jit
def order_key(x):
    """An int32 that orders like the fp32 x: equal numbers, equal keys."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _upper_middle(low, high):
    """The middle of two int32, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def kth_key(keys, valid, k, low, high):
    """The k-th largest of the valid keys by bisection; ``low`` if there are fewer."""
    while low < high:
        middle = _upper_middle(low, high)
        reaches = tl.sum(((keys >= middle) & valid).to(tl.int32)) >= k
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle - 1)
    return low


@triton.jit
def kth_key_of_row(
    row_ptr, k, low, high, vocab_size, NUM_TILES: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The same over a whole row: a pass for every bit."""
    while low < high:
        middle = _upper_middle(low, high)
        acc = tl.zeros([TILE], dtype=tl.int32)
        for tile in range(NUM_TILES):
            token_ids = tile * TILE + tl.arange(0, TILE)
            x = load_logits(row_ptr, token_ids, vocab_size)
            acc += ((order_key(x) >= middle) & (token_ids < vocab_size)).to(tl.int32)
        reaches = tl.sum(acc) >= k
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle - 1)
    return low
