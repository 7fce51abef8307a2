"""Draw one token per row without sorting: a few groups that can hold the top k, then a race."""

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
    """An int32 that orders like the fp32 x: equal numbers, equal keys."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _weights(x, top, temperature):
    """Probability relative to the likeliest token."""
    is_top = x == top  # also where the top is infinite, and has no difference to itself
    return tl.exp((tl.where(is_top, 0.0, x) - tl.where(is_top, 0.0, top)) / temperature)


@triton.jit
def _upper_middle(low, high):
    """The middle of two int32, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def _kth_key(keys, valid, k, low, high):
    """The k-th largest of the valid keys by bisection; ``low`` if there are fewer."""
    while low < high:
        middle = _upper_middle(low, high)
        reaches = tl.sum(((keys >= middle) & valid).to(tl.int32)) >= k
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle - 1)
    return low


@triton.jit
def _kth_key_of_row(
    row_ptr, k, low, high, vocab_size, NUM_TILES: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The same over a whole row: a pass for every bit."""
    while low < high:
        middle = _upper_middle(low, high)
        acc = tl.zeros([TILE], dtype=tl.int32)
        for tile in range(NUM_TILES):
            token_ids = tile * TILE + tl.arange(0, TILE)
            x = _load_logits(row_ptr, token_ids, vocab_size)
            acc += ((_key(x) >= middle) & (token_ids < vocab_size)).to(tl.int32)
        reaches = tl.sum(acc) >= k
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle - 1)
    return low


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
        x = _load_logits(row_ptr, token_ids, vocab_size)
        tl.store(maxima_ptr + groups, tl.max(x, axis=1))
    tl.debug_barrier()  # other threads read them
    groups = tl.arange(0, NUM_GROUPS)
    return tl.load(maxima_ptr + groups, mask=groups < NUM_TILES * in_tile, other=float("-inf"))


@triton.jit
def _first_of(found, ids):
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
        x = _load_logits(row_ptr, token_ids, vocab_size)
        key = _key(x)
        weight = _weights(x, top, temperature)
        kept = (key >= floor) & (token_ids < vocab_size)
        mass += tl.where(kept, weight, 0.0).to(tl.float64)
        arrival = weight / _arrival_times(stream, token_ids)
        speed = tl.where(kept & (weight >= min_p), arrival, -1.0)
        tile_fastest = tl.max(speed)
        if tile_fastest > fastest:
            fastest = tile_fastest
            winner = _first_of(speed == tile_fastest, token_ids)
            winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
    return tl.sum(mass), winner, winner_key


@triton.jit
def _draw_from_row(
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
def _draw_from_groups(
    row_ptr, groups, is_group, top_k, low, highest, top, temperature, top_p, min_p, stream,
    vocab_size, GROUP: tl.constexpr,
):  # fmt: skip
    """The same over groups that hold the top k, all in registers."""
    token_ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    valid = is_group[:, None] & (token_ids < vocab_size)
    x = _load_logits(row_ptr, tl.where(valid, token_ids, vocab_size), vocab_size)
    key = _key(x)
    kept = valid & (key >= _kth_key(key, valid, top_k, low, highest))
    weight = _weights(x, top, temperature)
    wide = tl.where(kept, weight, 0.0).to(tl.float64)
    arrival = weight / _arrival_times(stream, token_ids)
    speed = tl.where(kept & (weight >= min_p), arrival, -1.0)
    winner = _first_of(speed == tl.max(speed), token_ids)
    winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
    if top_p < 1.0:
        wanted = top_p.to(tl.float64) * tl.sum(wide)
        undecided = winner_key < highest
        while undecided:
            above = key > winner_key
            undecided = tl.sum(tl.where(above, wide, 0.0)) >= wanted
            rest = tl.where(above, speed, -1.0)
            second = _first_of(rest == tl.max(rest), token_ids)
            winner = tl.where(undecided, second, winner)
            winner_key = tl.max(tl.where(token_ids == winner, key, -2139095041))
            undecided = undecided & (winner_key < highest)
    return winner


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
    first = _first_of(maxima == top, groups) * GROUP + tl.arange(0, GROUP)
    best = _first_of(_load_logits(row_ptr, first, vocab_size) == top, first)
    best = tl.where(top == float("-inf"), -1, best)

    if (row_temperature > 0.0) & (best >= 0):
        row_top_k = _of_row(top_k, row, (PER_ROW >> 1) & 1, tl.int64)
        row_top_p = _of_row(top_p, row, (PER_ROW >> 2) & 1, tl.float32)
        row_min_p = _of_row(min_p, row, (PER_ROW >> 3) & 1, tl.float32)
        seed = _of_row(seeds, row, (PER_ROW >> 4) & 1, tl.int64).to(tl.uint64, bitcast=True)
        position = _of_row(positions, row, (PER_ROW >> 5) & 1, tl.int64)
        position = position.to(tl.uint64, bitcast=True)
        golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        stream = _mix(_mix(seed + golden) + position * golden)
        threshold = tl.full([], -2139095041, tl.int32)  # the key of minus infinity
        highest = _key(top)
        in_row = groups * GROUP < vocab_size
        kept = in_row
        has_top_k = (row_top_k > 0) & (row_top_k < vocab_size)
        if has_top_k:
            keys = _key(maxima)
            threshold = _kth_key(keys, in_row, row_top_k, threshold, highest)
            kept = in_row & (keys >= threshold)
        num_kept = tl.sum(kept.to(tl.int32))
        if has_top_k & (num_kept <= MAX_GROUPS):
            place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
            list_ptr = groups_ptr + row * MAX_GROUPS
            tl.store(list_ptr + place, groups, mask=kept)
            tl.debug_barrier()
            listed = tl.arange(0, MAX_GROUPS)
            is_group = listed < num_kept
            best = _draw_from_groups(
                row_ptr, tl.load(list_ptr + listed, mask=is_group, other=0), is_group, row_top_k,
                threshold, highest, top, row_temperature, row_top_p, row_min_p, stream,
                vocab_size, GROUP,
            )  # fmt: skip
        else:
            if has_top_k:
                threshold = _kth_key_of_row(
                    row_ptr, row_top_k, threshold, highest, vocab_size, NUM_TILES, TILE
                )
            best = _draw_from_row(
                row_ptr, threshold, highest, top, row_temperature, row_top_p, row_min_p, stream,
                vocab_size, NUM_TILES * (TILE // RACE_TILE), RACE_TILE,
            )  # fmt: skip
    tl.store(drawn_ptr + row, best.to(tl.int64))
