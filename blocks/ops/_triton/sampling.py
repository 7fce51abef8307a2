"""Draw one token per row without sorting: thresholds by bisection, then a race."""

import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """The finaliser of SplitMix64 (Stafford's variant 13) on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _arrival_times(stream, token_ids):
    """Exponential waiting times, a pure function of the stream and the token id.

    The uniform number keeps 32 bits below one half; -log(1 - u) is computed as Kahan's
    log(w) u / (w - 1) with w = 1 - u rounded, exact to fp32 also where u is tiny.
    """
    bits = _mix(stream + (token_ids.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)
    high = (bits >> 32).to(tl.float64)
    u = tl.minimum((high + 0.5) * 2.3283064365386963e-10, 0.999999940395355).to(tl.float32)
    w = 1.0 - u
    slope = tl.where(w == 1.0, -1.0, tl.log(w) / tl.where(w == 1.0, 1.0, 1.0 - w))
    return -slope * u


@triton.jit
def _load_logits(row_ptr, token_ids, vocab_size):
    """Logits of a tile in fp32; NaN and what lies past the vocabulary are minus infinity."""
    x = tl.load(row_ptr + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    x = x.to(tl.float32)
    return tl.where(x != x, float("-inf"), tl.where(x == 0.0, 0.0, x))  # one zero, not two


@triton.jit
def _key(x):
    """An int64 that orders like the fp32 x: equal numbers, equal keys."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def _weights(x, top, temperature):
    """Probability relative to the likeliest token."""
    is_top = x == top  # also where the top is infinite, and has no difference to itself
    return tl.exp((tl.where(is_top, 0.0, x) - tl.where(is_top, 0.0, top)) / temperature)


@triton.jit
def _mass_from(
    row_ptr,
    key_from,
    top,
    temperature,
    vocab_size,
    COUNT: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many tokens (COUNT) or what weight lies at or above a key; fp64."""
    acc = tl.zeros([TILE], dtype=tl.float64)
    for tile in range(NUM_TILES):
        token_ids = tile * TILE + tl.arange(0, TILE)
        x = _load_logits(row_ptr, token_ids, vocab_size)
        kept = (_key(x) >= key_from) & (token_ids < vocab_size)
        weight = tl.full([TILE], 1.0, tl.float32) if COUNT else _weights(x, top, temperature)
        acc += tl.where(kept, weight, 0.0).to(tl.float64)
    return tl.sum(acc, axis=0)


@triton.jit
def _largest_key_reaching(
    row_ptr,
    wanted,
    low,
    high,
    top,
    temperature,
    vocab_size,
    COUNT: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest key in [low, high] whose tail reaches ``wanted``; the tail of ``low`` does."""
    for _ in range(32):
        middle = (low + high + 1) >> 1
        mass = _mass_from(row_ptr, middle, top, temperature, vocab_size, COUNT, NUM_TILES, TILE)
        reaches = mass >= wanted
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, tl.maximum(middle - 1, low))
    return low


@triton.jit
def _sample_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    stride_logits_row,
    temperature_ptr,  # [num_rows] fp32
    top_k_ptr,  # [num_rows] int64
    top_p_ptr,  # [num_rows] fp32
    min_p_ptr,  # [num_rows] fp32
    seeds_ptr,  # [num_rows] int64
    positions_ptr,  # [num_rows] int64
    drawn_ptr,  # [num_rows] int64
    vocab_size,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program draws one row; every pass walks the row's tiles, which stay in cache.

    Passes: the largest logit; then, for rows that ask, 32 for the top-k threshold and 33 for the
    top-p threshold (bisection over the bits of fp32, so the thresholds are exact); then the race.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits_row
    temperature = tl.load(temperature_ptr + row)

    top = float("-inf")
    best = tl.full([], -1, tl.int64)
    for tile in range(NUM_TILES):
        token_ids = tile * TILE + tl.arange(0, TILE)
        x = _load_logits(row_ptr, token_ids, vocab_size)
        tile_top = tl.max(x, axis=0)
        tile_best = tl.argmax(x, axis=0, tie_break_left=True)
        best = tl.where(tile_top > top, tile * TILE + tile_best, best)
        top = tl.maximum(top, tile_top)

    if (temperature > 0.0) & (best >= 0):
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        lowest = tl.full([], -2139095041, tl.int64)  # the key of minus infinity
        highest = _key(top)
        threshold = lowest
        if (top_k > 0) & (top_k < vocab_size):
            threshold = _largest_key_reaching(
                row_ptr, top_k.to(tl.float64), lowest, highest, top, temperature, vocab_size,
                True, NUM_TILES, TILE,
            )  # fmt: skip
        if top_p < 1.0:
            mass = _mass_from(
                row_ptr, threshold, top, temperature, vocab_size, False, NUM_TILES, TILE
            )
            threshold = _largest_key_reaching(
                row_ptr, top_p.to(tl.float64) * mass, threshold, highest, top, temperature,
                vocab_size, False, NUM_TILES, TILE,
            )  # fmt: skip

        seed = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
        position = tl.load(positions_ptr + row).to(tl.uint64, bitcast=True)
        golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        stream = _mix(_mix(seed + golden) + position * golden)
        fastest = float("-inf")
        for tile in range(NUM_TILES):
            token_ids = tile * TILE + tl.arange(0, TILE)
            x = _load_logits(row_ptr, token_ids, vocab_size)
            weight = _weights(x, top, temperature)
            kept = (_key(x) >= threshold) & (weight >= min_p) & (token_ids < vocab_size)
            race = tl.where(kept, weight / _arrival_times(stream, token_ids), -1.0)
            tile_fastest = tl.max(race, axis=0)
            tile_best = tl.argmax(race, axis=0, tie_break_left=True)
            best = tl.where(tile_fastest > fastest, tile * TILE + tile_best, best)
            fastest = tl.maximum(fastest, tile_fastest)
    tl.store(drawn_ptr + row, best)
