"""Rotary position embedding: turning query and key by the angles of their positions.

The table of cosines and sines is made once a model (``rope_frequencies.py``); each call looks its
rows up by position.
"""

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from blocks import _checks
from blocks._autograd import must_trace
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._library import choose
from blocks.ops._rope import ROPE, native_rope, outside_table, triton_rope

HAS = ("reference", "triton")
DIFFERENTIABLE = ("reference", "native", "triton")


@_checks.expects_tensors
def apply_rope(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    positions: Int[Tensor, " num_tokens"],
    cos_sin: Float32[Tensor, "max_positions rotary_dim"],
    *,
    interleaved: bool = False,
    inplace: bool = False,
    impl: Impl | None = None,
) -> tuple[
    Float[Tensor, "num_tokens num_heads head_dim"],
    Float[Tensor, "num_tokens num_kv_heads head_dim"],
]:
    """Turn the first ``rotary_dim`` dimensions of every head by the angles of its position.

    Each pair (a, b) becomes (a cos - b sin, b cos + a sin) in fp32, rounded once; further
    dimensions pass through. Pairs are dimensions (i, i + rotary_dim / 2), or (2i, 2i + 1) with
    ``interleaved``. Query and key may be views into one fused projection (any token and head
    stride; each head contiguous).

    Args:
        query, key: fp32, bf16 or fp16, of one dtype.
        positions: in [0, max_positions); a position outside is refused on the CPU and must not
            occur on an accelerator, where looking would cost a synchronisation.
        cos_sin: from ``rope_table``; the fast paths give it no gradient.
        interleaved: GPT-J's pairing in place of GPT-NeoX's.
        inplace: write the results over query and key and return those; not with gradients.
        impl: None for the fastest where the tensors live.

    Raises:
        ValueError, TypeError: shapes that disagree, positions that are not integers or lie outside
            the table, ``inplace`` where gradients are needed or on an expanded view.

    >>> from blocks.ops import rope_frequencies, rope_table
    >>> import torch
    >>> table = rope_table(rope_frequencies(2), 8)
    >>> one = torch.tensor([[[1.0, 0.0]]])
    >>> apply_rope(one, one, torch.tensor([1]), table)[0]
    tensor([[[0.5403, 0.8415]]])

    Reference: Su et al. 2021, "RoFormer", section 3.4.2, equation 34.
    """
    _check(query, key, positions, cos_sin)
    traced = must_trace(query, key, cos_sin)
    if inplace and traced and torch.is_grad_enabled():
        raise ValueError("inplace: expected no gradients, got inputs that require grad")
    if inplace and (0 in query.stride() or 0 in key.stride()):  # would turn the same memory twice
        got = (query.stride(), key.stride())
        raise _checks.fail(
            "inplace", "strides above 0", got, "call .contiguous() on expanded views"
        )
    differentiable = ("reference",) if cos_sin.requires_grad else DIFFERENTIABLE
    chosen = choose(impl, HAS, query, key, traced=traced, differentiable=differentiable)
    if chosen == "native" and not traced:
        return native_rope(query, key, positions, cos_sin, interleaved, inplace)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(positions, cos_sin.shape[0])
    if chosen == "triton" and not traced:
        return triton_rope(query, key, positions, cos_sin, interleaved, inplace)
    if chosen == "reference":
        turned = reference.apply_rope(query, key, positions, cos_sin, interleaved=interleaved)
    else:
        turned = ROPE(query, key, positions, cos_sin, interleaved, False, chosen)
    return (query.copy_(turned[0]), key.copy_(turned[1])) if inplace else (turned[0], turned[1])


def rope_work(
    num_tokens: int, num_heads: int, num_kv_heads: int, rotary_dim: int, dtype_bytes: int
) -> Work:
    """Work of ``apply_rope`` in place, and of its gradient.

    Six operations a pair; every turned element is read and written once.
    """
    elements = num_tokens * (num_heads + num_kv_heads) * rotary_dim
    table_bytes = num_tokens * (rotary_dim * 4 + 8)
    return Work(3 * elements, 2 * elements * dtype_bytes + table_bytes)


def _check(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    _checks.check_shape("query", query, ("num_tokens", "num_heads", "head_dim"))
    num_tokens, _, head_dim = query.shape
    _checks.check_shape("key", key, (num_tokens, "num_kv_heads", head_dim), "as query")
    if not query.is_floating_point():
        raise TypeError(f"query dtype: expected a floating point dtype, got {query.dtype}")
    _checks.check_dtype("key", key, (query.dtype,), "query and key share one dtype")
    _checks.check_shape("positions", positions, (num_tokens,), "one position per token")
    _checks.check_dtype("positions", positions, (torch.int64, torch.int32))
    _checks.check_shape("cos_sin", cos_sin, ("max_positions", "rotary_dim"))
    _checks.check_dtype("cos_sin", cos_sin, (torch.float32,), "make it with rope_table")
    if not query.device == key.device == positions.device == cos_sin.device:
        _checks.check_same_device(query=query, key=key, positions=positions, cos_sin=cos_sin)
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 != 0 or rotary_dim > head_dim:
        raise _checks.fail("rotary_dim", f"an even number up to head_dim {head_dim}", rotary_dim)


def _check_range(positions: Tensor, max_positions: int) -> None:
    if positions.numel() == 0:
        return
    low, high = (int(n) for n in positions.aminmax())
    if low < 0 or high >= max_positions:
        raise outside_table(f"{low} to {high}", max_positions)
