"""AdamW and the global norm over many tensors in one launch each, found through a table."""

import triton
import triton.language as tl

COLUMNS: tl.constexpr = tl.constexpr(7)
"""Of the table: parameter, gradient, exp_avg, exp_avg_sq, step (addresses), size, first chunk."""


@triton.jit
def _elements(
    row_ptr,
    column: tl.constexpr,
    start,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Pointers to elements [start, start + TILE) of the tensor in a column; ALIGNED: it begins at a
    multiple of 16 bytes."""
    found = tl.load(row_ptr + column).to(tl.pointer_type(TYPE)) + start + tl.arange(0, TILE)
    return tl.multiple_of(found, 16) if ALIGNED else found


@triton.jit
def _chunk(table_ptr, owners_ptr, TILE: tl.constexpr):
    """This program's tensor (its row of the table), where its elements begin, and how many there
    are from there on."""
    chunk = tl.program_id(0)
    row_ptr = table_ptr + tl.load(owners_ptr + chunk).to(tl.int64) * COLUMNS
    start = (chunk - tl.load(row_ptr + 6)) * TILE
    return row_ptr, start, tl.load(row_ptr + 5) - start


@triton.jit
def _bias_correction(step, log2_beta):
    """1 - beta**step; in fp64 because the first steps of a beta near 1 cancel."""
    return (1.0 - tl.exp2((step * log2_beta).to(tl.float64))).to(tl.float32)


@triton.jit
def _update(
    row_ptr, start, left, factor, rate, kept, root, eps, beta1_rest, beta2_rest,
    PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, ALIGNED: tl.constexpr,
    MASKED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Elements [start, start + TILE) of a tensor; a mask, which would split the wide loads, only
    for the last of them (MASKED)."""
    lanes = tl.arange(0, TILE)
    mask = lanes < left if MASKED else None
    other = 0.0 if MASKED else None
    param_ptr = _elements(row_ptr, 0, start, PARAM, ALIGNED, TILE)
    grad_ptr = _elements(row_ptr, 1, start, GRAD, ALIGNED, TILE)
    mean_ptr = _elements(row_ptr, 2, start, STATE, ALIGNED, TILE)
    square_ptr = _elements(row_ptr, 3, start, STATE, ALIGNED, TILE)
    param = tl.load(param_ptr, mask=mask, other=other).to(tl.float32)
    grad = tl.load(grad_ptr, mask=mask, other=other).to(tl.float32) * factor
    mean = tl.load(mean_ptr, mask=mask, other=other).to(tl.float32)
    square = tl.load(square_ptr, mask=mask, other=other).to(tl.float32)

    mean += beta1_rest * (grad - mean)
    square += beta2_rest * (grad * grad - square)
    param = param * kept - rate * (mean / (tl.sqrt(square) * root + eps))

    tl.store(param_ptr, param.to(PARAM), mask=mask)
    tl.store(mean_ptr, mean.to(STATE), mask=mask)
    tl.store(square_ptr, square.to(STATE), mask=mask)


@triton.jit
def _adamw_kernel(
    table_ptr,  # [num_tensors, COLUMNS] int64
    owners_ptr,  # [num_chunks] int32, the tensor each chunk is of
    factor_ptr,  # one fp32 number the gradients are multiplied by, or None for 1; NaN: no update
    step,  # number of the step from 1, or None: the table points at one for each tensor
    lr,  # a number, or a pointer to one
    weight_decay, eps,
    beta1_rest,  # 1 - beta1, rounded once from fp64; so is the next
    beta2_rest, log2_beta1, log2_beta2,
    PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, LR_POINTER: tl.constexpr,
    ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program owns TILE neighbouring elements of one tensor: each is read and written once."""
    row_ptr, start, left = _chunk(table_ptr, owners_ptr, TILE)
    factor = 1.0
    if factor_ptr is not None:
        factor = tl.load(factor_ptr)
    if factor == factor:
        rate = lr
        if LR_POINTER:
            rate = tl.load(lr).to(tl.float32)
        count = step
        if step is None:
            count = tl.load(tl.load(row_ptr + 4).to(tl.pointer_type(tl.float32)))
        kept = 1.0 - rate * weight_decay
        rate = rate / _bias_correction(count, log2_beta1)
        root = 1.0 / tl.sqrt(_bias_correction(count, log2_beta2))
        if left >= TILE:
            _update(row_ptr, start, left, factor, rate, kept, root, eps, beta1_rest, beta2_rest,
                    PARAM, GRAD, STATE, ALIGNED, False, TILE)  # fmt: skip
        else:
            _update(row_ptr, start, left, factor, rate, kept, root, eps, beta1_rest, beta2_rest,
                    PARAM, GRAD, STATE, ALIGNED, True, TILE)  # fmt: skip


@triton.jit
def _squares_kernel(
    table_ptr,  # [num_tensors, COLUMNS] int64
    owners_ptr,  # [num_chunks] int32
    partials_ptr,  # [num_chunks] fp32
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program adds up the squares of TILE neighbouring gradients."""
    row_ptr, start, left = _chunk(table_ptr, owners_ptr, TILE)
    lanes = tl.arange(0, TILE)
    grad_ptr = _elements(row_ptr, 1, start, GRAD, ALIGNED, TILE)
    if left >= TILE:
        grad = tl.load(grad_ptr).to(tl.float32)
    else:
        grad = tl.load(grad_ptr, mask=lanes < left, other=0.0).to(tl.float32)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(grad * grad, axis=0))


@triton.jit
def _clip_kernel(
    partials_ptr,  # [num_partials] fp32
    grad_scale_ptr,  # one fp32 number, or None for 1
    norm_ptr,  # one fp32 number, written
    factor_ptr,  # one fp32 number, written; NaN where the norm is not finite
    num_partials,
    max_norm,
    TILE: tl.constexpr,
):
    """The one program adds up the partial sums in a fixed order and decides the clipping."""
    total = tl.zeros([TILE], tl.float32)
    for start in tl.range(0, num_partials, TILE):
        offsets = start + tl.arange(0, TILE)
        total += tl.load(partials_ptr + offsets, mask=offsets < num_partials, other=0.0)
    unscale = 1.0
    if grad_scale_ptr is not None:
        unscale = 1.0 / tl.load(grad_scale_ptr)
    norm = tl.sqrt(tl.sum(total, axis=0)) * unscale
    factor = tl.minimum(max_norm / (norm + 1e-6), 1.0) * unscale
    finite = tl.abs(norm) < float("inf")
    tl.store(norm_ptr, norm)
    tl.store(factor_ptr, tl.where(finite, factor, float("nan")))
