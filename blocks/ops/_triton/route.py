"""Experts of every token, and rows sorted by expert: a counting sort in three launches."""

import triton
import triton.language as tl


@triton.jit
def _choose_kernel(
    logits_ptr,  # [num_tokens, num_experts]
    stride_logits_token,
    bias_ptr,  # [num_experts] or None
    experts_ptr,  # [num_tokens, TOP_K] int32
    weights_ptr,  # [num_tokens, TOP_K] fp32
    counts_ptr,  # [tiles, num_experts] int32: tokens of this tile that chose each expert
    num_tokens, num_experts, scale,
    TOP_K: tl.constexpr, IS_SOFTMAX: tl.constexpr, NORMALIZE: tl.constexpr,
    TILE_TOKENS: tl.constexpr, TILE_EXPERTS: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_TOKENS tokens and takes their largest score TOP_K times.

    The host guarantees TILE_EXPERTS >= num_experts >= TOP_K and TILE_K >= TOP_K. What was taken,
    and what pads the row, is minus infinity; NaN is the lowest finite number, so it comes last.
    """
    tile = tl.program_id(0).to(tl.int64)
    tokens = tile * TILE_TOKENS + tl.arange(0, TILE_TOKENS)
    ids = tl.arange(0, TILE_EXPERTS)
    ranks = tl.arange(0, TILE_K)
    token_mask = (tokens < num_tokens)[:, None]
    mask = token_mask & (ids < num_experts)[None, :]
    logits_ptr += tokens[:, None] * stride_logits_token + ids[None, :]
    logits = tl.load(logits_ptr, mask=mask, other=float("-inf")).to(tl.float32)
    if IS_SOFTMAX:
        top = tl.max(tl.where(mask, logits, float("-inf")), axis=1)
        powers = tl.exp(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
        total = tl.where(tokens < num_tokens, tl.sum(powers, axis=1), 1.0)
        scores = powers / total[:, None]
    else:
        small = tl.exp(-tl.abs(logits))
        scores = tl.where(logits >= 0.0, 1.0, small) / (1.0 + small)
        scores = tl.where(logits != logits, logits, scores)
    preference = scores
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + ids, mask=ids < num_experts, other=0.0).to(tl.float32)
        preference += bias[None, :]
    lowest: tl.constexpr = -3.4028234663852886e38
    ordered = tl.where(preference >= lowest, preference, lowest)
    ordered = tl.where((ids < num_experts)[None, :], ordered, float("-inf"))

    weights = tl.zeros([TILE_TOKENS, TILE_K], tl.float32)
    experts = tl.zeros([TILE_TOKENS, TILE_K], tl.int32)
    for rank in tl.static_range(TOP_K):
        best = tl.argmax(ordered, axis=1, tie_break_left=True)
        is_best = ids[None, :] == best[:, None]
        weight = tl.sum(tl.where(is_best, scores, 0.0), axis=1)
        weights = tl.where((ranks == rank)[None, :], weight[:, None], weights)
        experts = tl.where((ranks == rank)[None, :], best[:, None].to(tl.int32), experts)
        ordered = tl.where(is_best, float("-inf"), ordered)
    if NORMALIZE:
        total = tl.where(tokens < num_tokens, tl.sum(weights, axis=1), 1.0)
        weights = weights / total[:, None]

    out = tokens[:, None] * TOP_K + ranks[None, :]
    out_mask = token_mask & (ranks < TOP_K)[None, :]
    tl.store(experts_ptr + out, experts, mask=out_mask)
    tl.store(weights_ptr + out, weights * scale, mask=out_mask)
    taken = mask & (ordered == float("-inf"))
    counts = tl.sum(taken.to(tl.int32), axis=0)
    tl.store(counts_ptr + tile * num_experts + ids, counts, mask=ids < num_experts)


@triton.jit
def _scan_kernel(
    counts_ptr,  # [tiles, num_experts] int32; becomes the sum over earlier tiles
    totals_ptr,  # [num_experts] int32
    num_tiles,
    num_experts,
    TILE: tl.constexpr,
    TILE_EXPERTS: tl.constexpr,
):
    """One program owns TILE_EXPERTS experts and walks down the tiles, TILE at a time."""
    ids = tl.program_id(0) * TILE_EXPERTS + tl.arange(0, TILE_EXPERTS)
    before = tl.zeros([TILE_EXPERTS], tl.int32)
    for start in range(0, num_tiles, TILE):
        tiles = (start + tl.arange(0, TILE)).to(tl.int64)
        mask = (tiles < num_tiles)[:, None] & (ids < num_experts)[None, :]
        ptrs = counts_ptr + tiles[:, None] * num_experts + ids[None, :]
        counts = tl.load(ptrs, mask=mask, other=0)
        through = tl.cumsum(counts, axis=0)
        tl.store(ptrs, before[None, :] + through - counts, mask=mask)
        before += tl.sum(counts, axis=0)
    tl.store(totals_ptr + ids, before, mask=ids < num_experts)


@triton.jit
def _place_kernel(
    experts_ptr,  # [num_tokens, TOP_K] int32
    counts_ptr,  # [tiles, num_experts] int32, summed over earlier tiles
    totals_ptr,  # [num_experts] int32
    tokens_ptr,  # [num_tokens * TOP_K] int32
    places_ptr,  # [num_tokens, TOP_K] int32
    offsets_ptr,  # [num_experts + 1] int32
    num_tokens, num_experts,
    TOP_K: tl.constexpr, TILE_TOKENS: tl.constexpr, TILE_EXPERTS: tl.constexpr,
):  # fmt: skip
    """One program owns the tokens of one tile of ``_choose_kernel`` and gives each its rows.

    A row's place: rows of lower experts, plus rows of this expert in earlier tiles, plus earlier
    tokens of this tile with the same expert. Every program adds up the totals; the first one
    writes the offsets.
    """
    tile = tl.program_id(0).to(tl.int64)
    tokens = tile * TILE_TOKENS + tl.arange(0, TILE_TOKENS)
    ids = tl.arange(0, TILE_EXPERTS)
    token_mask = tokens < num_tokens
    totals = tl.load(totals_ptr + ids, mask=ids < num_experts, other=0)
    through = tl.cumsum(totals, axis=0)
    if tile == 0:
        tl.store(offsets_ptr + ids, through - totals, mask=ids < num_experts)
        tl.store(offsets_ptr + num_experts, tl.sum(totals, axis=0))
    before = tl.load(counts_ptr + tile * num_experts + ids, mask=ids < num_experts, other=0)

    chose = tl.zeros([TILE_TOKENS, TILE_EXPERTS], tl.int32)
    for rank in tl.static_range(TOP_K):
        expert = tl.load(experts_ptr + tokens * TOP_K + rank, mask=token_mask, other=-1)
        chose += (ids[None, :] == expert[:, None]).to(tl.int32)
    places = (through - totals + before)[None, :] + tl.cumsum(chose, axis=0) - chose
    for rank in tl.static_range(TOP_K):
        expert = tl.load(experts_ptr + tokens * TOP_K + rank, mask=token_mask, other=-1)
        place = tl.sum(tl.where(ids[None, :] == expert[:, None], places, 0), axis=1)
        tl.store(places_ptr + tokens * TOP_K + rank, place, mask=token_mask)
        tl.store(tokens_ptr + place, tokens.to(tl.int32), mask=token_mask)
