"""From projection to cache in one pass: norm, rotation, quantisation and the paged write."""

from typing import Any

import torch
from jaxtyping import Float, Float32, Int, Int64, Num
from torch import Tensor

from blocks._checks import check, check_dtype, check_shape, expects_tensors, fail
from blocks._impl import choose_impl
from blocks._work import Work
from blocks.kv import _quantised, reference
from blocks.kv._rope_write import native_takes, outside_table, run_native, run_triton
from blocks.kv.scales import checked_scales
from blocks.kv.write import check_caches, check_slots

HAS = ("reference", "torch", "native", "triton")


@expects_tensors
def rope_write_kv(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    positions: Int[Tensor, " num_tokens"],
    cos_sin: Float32[Tensor, "max_positions rotary_dim"],
    key_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, " num_tokens"],
    *,
    query_norm: Float[Tensor, " head_dim"] | None = None,
    key_norm: Float[Tensor, " head_dim"] | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    interleaved: bool = False,
    k_scale: Float32[Tensor, "..."] | None = None,
    v_scale: Float32[Tensor, "..."] | None = None,
    inplace: bool = False,
    impl: str | None = None,
) -> Float[Tensor, "num_tokens num_heads head_dim"]:
    """Norm and turn query and key by their positions, write key and value, return the query.

    The same as ``rms_norm`` of every query and key head (where a weight is given), ``apply_rope``
    and ``write_kv`` one after the other, rounded where those round: to the inputs' dtype after the
    norm (before its weight too, with ``weight_offset`` 0) and after the rotation, then to the
    cache's dtype. Each element crosses memory once each way. The key itself is left as it is. No
    gradient flows.

    Args:
        query, key, value: fp32, bf16 or fp16, of one dtype; may be views into one fused
            projection (each head contiguous).
        positions: int64 or int32, in [0, max_positions); one outside is refused on the CPU and must
            not occur on an accelerator.
        cos_sin: cosines and sines of each position, ``rotary_dim / 2`` of each; dimensions beyond
            ``rotary_dim`` do not turn.
        key_cache, value_cache, slot_mapping, k_scale, v_scale: as `write_kv`. A token whose slot is
            -1 is not written; its query is turned all the same.
        query_norm, key_norm: weights of RMSNorm over each head, in the inputs' dtype; both or none.
        eps: added to the mean square; at least 0.
        weight_offset: added to the weights; 0 in Qwen3, 1 in Gemma.
        interleaved: pairs are dimensions (2i, 2i + 1) instead of (i, i + rotary_dim / 2).
        inplace: write the turned query over ``query`` and return that.
        impl: None for the fastest on this device.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit, gradients wanted;
            on the CPU also slots, positions or scales out of range, before anything is written.

    Reference: Su et al. 2021, "RoFormer", section 3.4.2; Yang et al. 2025, "Qwen3", section 2
    (norms of query and key); Kwon et al. 2023, PagedAttention, section 5.1.
    """
    caches, norms = (key_cache, value_cache), (query_norm, key_norm)
    check_caches(key, value, key_cache, value_cache, slot_mapping)
    _check(query, key, value, positions, cos_sin, norms, eps)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        raise fail("query, key", "no gradients", "inputs that require grad", "use torch.no_grad()")
    if inplace and 0 in query.stride():
        hint = "call .contiguous() on expanded views"
        raise fail("inplace", "strides above 0", query.stride(), hint)
    scales = checked_scales(key_cache, k_scale, v_scale)
    options: dict[str, Any] = {
        "eps": eps, "weight_offset": weight_offset, "interleaved": interleaved
    }  # fmt: skip
    given = (query.detach(), key.detach(), value.detach())
    where = (positions, cos_sin, slot_mapping)
    has = HAS if native_takes(query, key_cache) else tuple(h for h in HAS if h != "native")
    chosen = choose_impl(impl, has, key_cache)
    if chosen == "native":
        return run_native(given, where, caches, norms, scales, inplace, **options)
    if key_cache.device.type == "cpu":
        check_slots(slot_mapping, key_cache)
        _check_positions(positions, cos_sin.shape[0])
        if scales is not None:
            _quantised.check_scale_values(caches, scales, slot_mapping)
    if chosen == "triton":
        return run_triton(given, where, caches, norms, scales, inplace, **options)
    turn = reference.rope_write_kv if chosen == "reference" else _run_torch
    given_scales = {} if scales is None else {"k_scale": scales[0], "v_scale": scales[1]}
    turned = turn(
        *given, positions, cos_sin, *caches, slot_mapping,
        query_norm=query_norm, key_norm=key_norm, **given_scales, **options,
    )  # fmt: skip
    return query.copy_(turned) if inplace else turned


def rope_write_kv_work(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    itemsize: int,
    *,
    cache_itemsize: int | None = None,
    token_scales: bool = False,
) -> Work:
    """Every query, key and value is read once and written once, beside table rows and slots."""
    written = itemsize if cache_itemsize is None else cache_itemsize
    query_bytes = 2 * num_heads * head_dim * itemsize
    kv_bytes = 2 * num_kv_heads * (head_dim * (itemsize + written) + 4 * token_scales)
    per_token = query_bytes + kv_bytes + rotary_dim * 4 + 16
    flops = num_tokens * (num_heads + num_kv_heads) * (3 * rotary_dim + 4 * head_dim)
    return Work(flops, num_tokens * per_token)


def _run_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    weight_offset: float,
    interleaved: bool,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    from blocks.kv.write import write_kv

    turned = reference.turned_heads(
        query, key, positions, cos_sin, query_norm, key_norm, eps, weight_offset, interleaved
    )
    caches = (key_cache, value_cache, slot_mapping)
    write_kv(turned[1], value, *caches, k_scale=k_scale, v_scale=v_scale, impl="torch")
    return turned[0]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    norms: tuple[Tensor | None, Tensor | None],
    eps: float,
) -> None:
    num_tokens, _, head_dim = key.shape
    check_shape("query", query, (num_tokens, "num_heads", head_dim), "tokens and head_dim as key")
    check_dtype("query", query, (key.dtype,), "query, key and value share a dtype")
    check_shape("positions", positions, (num_tokens,), "one position per token")
    check_dtype("positions", positions, (torch.int64, torch.int32))
    check_shape("cos_sin", cos_sin, ("max_positions", "rotary_dim"))
    check_dtype("cos_sin", cos_sin, (torch.float32,), "cosines and sines are float32")
    rotary_dim = cos_sin.shape[1]
    ok = 0 < rotary_dim <= head_dim and rotary_dim % 2 == 0
    check(ok, "rotary_dim", f"an even number from 2 to head_dim {head_dim}", rotary_dim)
    both = (norms[0] is None) == (norms[1] is None)
    check(both, "query_norm, key_norm", "both or neither", "one of them")
    check(eps >= 0, "eps", "a number of at least 0", eps)
    for name, x in zip(("query_norm", "key_norm"), norms, strict=True):
        if x is not None:
            check_shape(name, x, (head_dim,), "one factor per dimension of a head")
            check_dtype(name, x, (query.dtype,), "norm weights share the inputs' dtype")
    for name, x in zip(
        ("query", "positions", "cos_sin", "query_norm", "key_norm"),
        (query, positions, cos_sin, *norms),
        strict=True,
    ):
        if x is not None and x.device != value.device:
            raise fail(name, f"a tensor on {value.device}", x.device, "move it with .to(device)")


def _check_positions(positions: Tensor, max_positions: int) -> None:
    if positions.numel():
        low, high = (int(n) for n in positions.aminmax())
        if low < 0 or high >= max_positions:
            raise outside_table(f"{low} to {high}", max_positions)
