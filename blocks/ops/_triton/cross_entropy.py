"""Cross entropy of rows of scores: loss, LSE and gradient, the gradient in place if need be."""

import triton
import triton.language as tl


@triton.jit
def _load_scores(row_ptr, columns, vocab_size, softcap, CAPPED: tl.constexpr, KEEP: tl.constexpr):
    """A tile of scores in fp32, capped; what lies past the vocabulary is minus infinity."""
    mask = columns < vocab_size
    x = tl.load(row_ptr + columns, mask=mask, other=float("-inf"), eviction_policy=KEEP)
    x = x.to(tl.float32)
    if CAPPED:
        x = tl.where(mask, softcap * _tanh(x / softcap), float("-inf"))
    return x


@triton.jit
def _tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|), signed; no overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def _loss_kernel(
    scores_ptr,  # [num_rows, vocab_size], each row contiguous
    stride_scores_row,
    grad_ptr,  # like scores, may be scores_ptr; None for no gradient
    stride_grad_row,
    labels_ptr,  # [num_rows] int64
    slopes_ptr,  # [num_rows] fp32, or None for ones
    losses_ptr,  # [num_rows] fp32
    lse_ptr,  # [num_rows] fp32
    vocab_size, ignore_index, softcap, z_loss, label_smoothing,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program owns one row, whatever its length.

    First pass, left to right: running maximum (one number) and running sums (one per lane, added
    up at the end). Second pass, right to left, so that it begins with what was read last and is
    still in a cache: each tile is read, turned into its gradient and written, by the same threads.
    Rows that do not count are not read; their gradient is zero. All sums have a fixed order.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = scores_ptr + row * stride_scores_row
    grad_row_ptr = row_ptr if grad_ptr is None else grad_ptr + row * stride_grad_row
    label = tl.load(labels_ptr + row)
    ignored = label == ignore_index
    inside = (label >= 0) & (label < vocab_size) & (label != ignore_index)
    lanes = tl.arange(0, TILE)
    if inside:
        target = tl.load(row_ptr + label).to(tl.float32)
        if CAPPED:
            target = softcap * _tanh(target / softcap)
        top = float("-inf")
        weights = tl.zeros([TILE], tl.float32)
        total = tl.zeros([TILE], tl.float32)
        for start in tl.range(0, vocab_size, TILE):
            columns = start + lanes
            x = _load_scores(row_ptr, columns, vocab_size, softcap, CAPPED, "evict_last")
            new_top = tl.maximum(top, tl.max(x, axis=0))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # of scores all -inf
            weights = weights * tl.exp(top - shift) + tl.exp(x - shift)
            top = new_top
            if SMOOTHED:
                total += tl.where(columns < vocab_size, x, 0.0)
        lse = tl.where(top == float("-inf"), 0.0, top) + tl.log(tl.sum(weights, axis=0))
        loss = lse - (1.0 - label_smoothing) * target + z_loss * lse * lse
        if SMOOTHED:
            loss -= label_smoothing / vocab_size * tl.sum(total, axis=0)
        tl.store(losses_ptr + row, loss)
        tl.store(lse_ptr + row, lse)
        if grad_ptr is not None:
            slope = 1.0
            if slopes_ptr is not None:
                slope = tl.load(slopes_ptr + row)
            factor = slope * (1.0 + 2.0 * z_loss * lse)
            last = (tl.cdiv(vocab_size, TILE) - 1) * TILE
            for start in tl.range(0, vocab_size, TILE):
                columns = last - start + lanes
                x = _load_scores(row_ptr, columns, vocab_size, softcap, CAPPED, "evict_first")
                g = tl.exp(x - lse) * factor
                g -= tl.where(columns == label, (1.0 - label_smoothing) * slope, 0.0)
                if SMOOTHED:
                    g -= label_smoothing / vocab_size * slope
                if CAPPED:
                    bend = tl.where(columns < vocab_size, x / softcap, 0.0)
                    g *= 1.0 - bend * bend
                g = g.to(grad_ptr.dtype.element_ty)
                tl.store(grad_row_ptr + columns, g, mask=columns < vocab_size)
    else:
        tl.store(losses_ptr + row, tl.where(ignored, 0.0, float("nan")))
        tl.store(lse_ptr + row, tl.where(ignored, 0.0, float("nan")))
        if grad_ptr is not None:
            zero = tl.zeros([TILE], grad_ptr.dtype.element_ty)
            for start in tl.range(0, vocab_size, TILE):
                columns = start + lanes
                tl.store(grad_row_ptr + columns, zero, mask=columns < vocab_size)


@triton.jit
def _scale_kernel(
    x_ptr,  # [num_elements], contiguous
    factor_ptr,  # one fp32 number
    num_elements,
    TILE: tl.constexpr,
):
    """One program multiplies TILE neighbours in place; a factor of 1 moves nothing."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        mask = offsets < num_elements
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(x_ptr + offsets, (x * factor).to(x_ptr.dtype.element_ty), mask=mask)
