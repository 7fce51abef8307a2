"""``slice_attention_backward``: gradients of a token slice, those of its prefix added in place."""

import itertools

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from blocks._checks import check, check_dtype, check_same_device, check_shape, expects_tensors, fail
from blocks._work import Work
from blocks.attention import _blocked, _launch_backward, reference
from blocks.attention._backward_call import BackwardCall
from blocks.attention._count import backward_work
from blocks.attention._layout import choose
from blocks.attention._options import resolve_options
from blocks.attention._slice import check_documents, check_slice, running_sums

HAS = ("triton", "torch", "reference")


@expects_tensors
def slice_attention_backward(
    grad_output: Float[Tensor, "*batch slice_len num_heads head_dim"],
    query: Float[Tensor, "*batch slice_len num_heads head_dim"],
    key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    output: Float[Tensor, "*batch slice_len num_heads head_dim"],
    lse: Float[Tensor, "*batch slice_len num_heads"],
    start: int,
    grad_key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    grad_value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    *,
    cu_seqlens: Int32[Tensor, " num_bounds"] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    grad_lse: Float[Tensor, "*batch slice_len num_heads"] | None = None,
    grad_sinks: Float[Tensor, " num_heads"] | None = None,
    grad_alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    impl: str | None = None,
) -> Float[Tensor, "*batch slice_len num_heads head_dim"]:
    """Differentiate ``slice_attention``: return the gradient of the query, add up the others.

    Everything a slice shares with others is added **in place** to buffers of the caller, in the
    order of the calls and without atomics: the same calls in the same order give the same bits.
    Zero the buffers before the first call of a sequence. Rows of keys no query of the slice sees
    are left alone.

    Args:
        grad_output: gradient of the output.
        query, key, value, start, cu_seqlens, scale, window, softcap, sinks, alibi_slopes: as they
            were in the forward; only the rows of keys up to the end of the slice need be.
        output, lse: what the forward returned.
        grad_key: added to, contiguous float32 (float64 for float64 inputs).
        grad_value: as grad_key.
        grad_lse: gradient of the LSE; None when nothing depends on it.
        grad_sinks: added to, float32, where given.
        grad_alibi_slopes: added to, float32, where given.
        impl: ``reference``, ``torch`` (the CPU's choice) or ``triton``.

    Returns:
        Gradient of the query, in its dtype.

    Raises:
        ValueError: shapes, positions or settings that do not fit together.
        TypeError: dtypes that do not fit together.

    Example:
        >>> from blocks.attention import slice_attention
        >>> q, k, v = (torch.randn(6, heads, 64) for heads in (4, 2, 2))
        >>> dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        >>> for rows in (slice(4, 6), slice(0, 4)):  # from the last slice to the first
        ...     out, lse = slice_attention(q[rows], k, v, rows.start)
        ...     dq = slice_attention_backward(out, q[rows], k, v, out, lse, rows.start, dk, dv)

    Reference:
        Li et al., "TeraPipe", 2021, section 3.1; Dao, "FlashAttention-2", 2023, section 3.1.2.
    """
    end = check_slice(query, key, value, start, cu_seqlens)
    row = query if query.dim() == 3 else query.flatten(0, 1)
    options = resolve_options(row, scale, window, softcap, sinks, alibi_slopes)
    results = grad_output, grad_lse, query, key, value, output, lse
    call = BackwardCall(*results, grad_key, grad_value, options)
    _check_gradients(call)
    _check_setting("grad_sinks", grad_sinks, sinks)
    _check_setting("grad_alibi_slopes", grad_alibi_slopes, alibi_slopes)
    with torch.no_grad():
        how = choose(impl, HAS, query, key, value)
        if cu_seqlens is not None and query.device.type == "cpu":
            check_documents(cu_seqlens, end)
        if how == "reference":
            gradients = grad_output, query, key, value, output, lse, start, grad_key, grad_value
            return reference.slice_attention_backward(
                *gradients,
                cu_seqlens=cu_seqlens,
                grad_lse=grad_lse,
                grad_sinks=grad_sinks,
                grad_alibi_slopes=grad_alibi_slopes,
                **options._asdict(),
            )
        run = _triton_backward if how == "triton" else _torch_backward
        grad_query, *found = run(call, start, cu_seqlens)
        for buffer, gradient in zip((grad_sinks, grad_alibi_slopes), found, strict=True):
            if buffer is not None:
                buffer += gradient
    return grad_query.view(query.shape)


def slice_attention_backward_work(
    start: int,
    slice_len: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    window: int | None = None,
) -> Work:
    """Work of one ``slice_attention_backward``: five products a visible pair; the float32
    gradients of visible keys and values read and written.

    >>> slice_attention_backward_work(0, 2, num_heads=1, num_kv_heads=1, head_dim=8, itemsize=2)
    Work(flops=240, bytes=448)
    """
    lens = ([slice_len], [start + slice_len])
    sizes = (num_heads, num_kv_heads, head_dim, itemsize, window)
    return backward_work(*lens, *sizes, accumulated=True)


def _torch_backward(
    call: BackwardCall, start: int, cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    if call.query.dim() == 3:  # a batch of one
        call = call.each(lambda t: t[None])
    query, end = call.query, start + call.query.shape[1]
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    settings = torch.zeros((2, query.shape[2]), dtype=call.grad_key.dtype, device=query.device)
    bounds = [0, end] if cu_seqlens is None else cu_seqlens.tolist()
    for first, last in itertools.pairwise(bounds):
        stop = min(last, end)
        if stop <= max(first, start):
            continue
        rows, keys = slice(max(first, start) - start, stop - start), slice(first, stop)
        grad_query[:, rows], *found = _blocked.backward(_part(call, rows, keys), True)
        settings += torch.stack(found)
    return grad_query, *settings.float().unbind()


def _part(call: BackwardCall, rows: slice, keys: slice) -> BackwardCall:
    """Some rows of the queries, and some of the keys, of a batch."""
    return call.each(lambda t: t[:, rows], lambda t: t[:, keys])


def _triton_backward(
    call: BackwardCall, start: int, cu_seqlens: Tensor | None
) -> tuple[Tensor, ...]:
    query = call.query
    sums, key_sums = running_sums(query, start, cu_seqlens)
    starts, ends = key_sums[:-1], key_sums[1:]
    if query.dim() == 4:
        batch, max_len = call.key.shape[:2]
        starts = torch.arange(batch, dtype=torch.int32, device=query.device) * max_len
        ends = starts + start + query.shape[1]
        call = call.each(lambda t: t.flatten(0, 1))
    return _launch_backward.backward(call, sums, starts, ends, want_slopes=True, accumulate=True)


def _check_gradients(call: BackwardCall) -> None:
    grad_output, grad_lse, query, key, _, output, lse, grad_key, grad_value, _ = call
    compute = torch.promote_types(query.dtype, torch.float32)
    for name, tensor in (("grad_output", grad_output), ("output", output)):
        check_shape(name, tensor, tuple(query.shape), "the shape of query")
        check_dtype(name, tensor, (query.dtype,), "the dtype of query")
    allowed = tuple({torch.float32, compute})
    check_shape("lse", lse, tuple(query.shape[:-1]), "one a token and head")
    check_dtype("lse", lse, allowed, "as the forward returned it")
    if grad_lse is not None:
        check_shape("grad_lse", grad_lse, tuple(query.shape[:-1]), "the shape of lse")
        check_dtype("grad_lse", grad_lse, allowed)
    check(grad_key is not grad_value, "grad_value", "memory of its own", "the tensor of grad_key")
    for name, buffer in (("grad_key", grad_key), ("grad_value", grad_value)):
        check_shape(name, buffer, tuple(key.shape), "the shape of key")
        check_dtype(name, buffer, (compute,), "sums over slices are not rounded")
        check(buffer.is_contiguous(), f"{name} layout", "contiguous", list(buffer.stride()))
    check_same_device(
        query=query,
        grad_output=grad_output,
        output=output,
        lse=lse,
        grad_lse=grad_lse,
        grad_key=grad_key,
        grad_value=grad_value,
    )


def _check_setting(name: str, buffer: Tensor | None, setting: Tensor | None) -> None:
    """Check a buffer for the gradient of a setting."""
    if buffer is None:
        return
    if setting is None:
        raise fail(name, f"None without {name.removeprefix('grad_')}", "a tensor")
    check_shape(name, buffer, tuple(setting.shape), "one a head")
    check_dtype(name, buffer, (torch.float32,))
    check_same_device(**{name: buffer, name.removeprefix("grad_"): setting})
