"""Copy of whole blocks with their scales: many pairs and all planes in one launch."""

import triton
import triton.language as tl


@triton.jit
def _copy_tile(
    source_ptr, stride_source_plane, stride_source_block,
    target_ptr, stride_target_plane, stride_target_block,
    plane, source, target, tile, num_words,
    TILE: tl.constexpr,
):  # fmt: skip
    """TILE words of one block."""
    offs = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = offs < num_words
    from_ptr = source_ptr + plane * stride_source_plane + source * stride_source_block + offs
    to_ptr = target_ptr + plane * stride_target_plane + target * stride_target_block + offs
    tl.store(to_ptr, tl.load(from_ptr, mask=mask, other=0), mask=mask)


@triton.jit
def copy_blocks_kernel(
    source_ptr,  # [num_planes, num_source_blocks, num_words] of plain numbers
    stride_source_plane, stride_source_block,
    target_ptr,  # [num_planes, num_target_blocks, num_words]; may be source
    stride_target_plane, stride_target_block, num_words,
    source_scales_ptr,  # [num_planes, num_source_blocks, num_scales], or None
    stride_source_scales_plane, stride_source_scales_block,
    target_scales_ptr,  # [num_planes, num_target_blocks, num_scales], or None
    stride_target_scales_plane, stride_target_scales_block, num_scales,
    pairs_ptr,  # [num_pairs, 2] source and target block
    num_tiles,  # of a block's words; the tiles beyond are of its scales
    TILE: tl.constexpr,
):  # fmt: skip
    """One program copies TILE words of one block in one plane, or TILE of its scales.

    Grid [num_pairs, num_planes, num_tiles + ceil(num_scales / TILE)]. The host guarantees that no
    block is both read and written, or written twice, within a launch, that ids are in range, and
    that a block's words are contiguous.
    """
    pair = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(2)
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    target = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    if tile < num_tiles:
        _copy_tile(
            source_ptr, stride_source_plane, stride_source_block,
            target_ptr, stride_target_plane, stride_target_block,
            plane, source, target, tile, num_words, TILE,
        )  # fmt: skip
    elif source_scales_ptr is not None:
        _copy_tile(
            source_scales_ptr, stride_source_scales_plane, stride_source_scales_block,
            target_scales_ptr, stride_target_scales_plane, stride_target_scales_block,
            plane, source, target, tile - num_tiles, num_scales, TILE,
        )  # fmt: skip
