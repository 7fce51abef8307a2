"""Copy of whole blocks, many pairs and all planes in one launch."""

import triton
import triton.language as tl


@triton.jit
def copy_blocks_kernel(
    planes_ptr,  # [num_planes, num_blocks, block_elements]
    stride_plane,
    stride_block,
    pairs_ptr,  # [num_pairs, 2] source and target block
    block_elements,
    TILE: tl.constexpr,
):
    """One program copies TILE elements of one block in one plane.

    Grid [num_pairs, num_planes, ceil(block_elements / TILE)]. The host guarantees that no block is
    both read and written, or written twice, within a launch, that ids are in range, and that a
    block's elements are contiguous.
    """
    pair = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(1).to(tl.int64)
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    target = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    offs = tl.program_id(2).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = offs < block_elements
    base = planes_ptr + plane * stride_plane + offs
    block = tl.load(base + source * stride_block, mask=mask, other=0.0)
    tl.store(base + target * stride_block, block, mask=mask)
