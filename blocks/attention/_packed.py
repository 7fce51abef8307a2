"""Packed attention and its gradients: every implementation behind ``forward`` and ``backward``.

``PREFILL`` is the operator for calls that need gradients or are traced by ``torch.compile``; calls
without them run ``forward`` directly.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from blocks._autograd import Operation
from blocks.attention import _blocked, _cpu, _launch_attend, _launch_backward
from blocks.attention._backward_call import BackwardCall
from blocks.attention._call import Call
from blocks.attention._layout import check_batch_invariant, check_bounds, choose
from blocks.attention._options import Options
from blocks.attention.output import AttentionOutput

HAS = ("native", "triton", "torch")
BATCH_SCORES = 1 << 20
"""Scores of one step of the blocked backward up to which equally long sequences share it."""


def forward(
    how: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: Options,
    *,
    causal: bool = True,
    batch_invariant: bool = False,
    return_lse: bool = True,
) -> Any:
    """Output, or ``AttentionOutput``; the LSE is float64 where the inputs are."""
    call = Call(query, key, value, None, cu_seqlens_k, cu_seqlens_q, options)
    if how == "triton":
        return _launch_attend.attend(
            call, causal=causal, return_lse=return_lse, batch_invariant=batch_invariant
        )
    if how == "native":
        found = _cpu.attention(call, causal=causal, return_lse=return_lse)
        if found is not None:
            return found
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = output.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for rows, keys, batch in _alike(query, key, cu_seqlens_q, cu_seqlens_k):
        assert how != "native", "the C++ kernel refused what the checks find right"
        q, k, v = (t.unflatten(0, (batch, -1)) for t in (query[rows], key[keys], value[keys]))
        found = _blocked.forward(q, k, v, options, causal)
        output[rows], lse[rows] = (t.flatten(0, 1) for t in found)
    return AttentionOutput(output, lse) if return_lse else output


def backward(
    how: str,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    options: Options,
    *,
    causal: bool = True,
    want_slopes: bool = True,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, sinks and slopes; the last two float32 [num_heads]."""
    tensors = grad_output, grad_lse, query, key, value, output, lse
    if how == "triton":
        grad_key, grad_value = (t.new_empty(t.shape) for t in (key, value))
        call = BackwardCall(*tensors, grad_key, grad_value, options)
        sums = cu_seqlens_q, cu_seqlens_k[:-1], cu_seqlens_k[1:]
        grad_query, *settings = _launch_backward.backward(
            call, *sums, causal=causal, want_slopes=want_slopes
        )
        return grad_query, grad_key, grad_value, *settings
    compute = torch.promote_types(query.dtype, torch.float32)
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_key, grad_value = (key.new_zeros(key.shape, dtype=compute) for _ in range(2))
    sinks, slopes = (key.new_zeros(query.shape[1], dtype=compute) for _ in range(2))
    call = BackwardCall(*tensors, grad_key, grad_value, options)
    for rows, keys, batch in _alike(query, key, cu_seqlens_q, cu_seqlens_k):
        found = _blocked.backward(_part(call, rows, keys, batch), causal)
        grad_query[rows] = found[0].flatten(0, 1)
        sinks += found[1]
        slopes += found[2]
    found = (grad_query, grad_key.to(key.dtype), grad_value.to(key.dtype), sinks, slopes)
    return tuple(t.float() if t.dim() == 1 else t for t in found)


def _part(call: BackwardCall, rows: slice, keys: slice, batch: int) -> BackwardCall:
    """Some equally long sequences, with a batch dimension of their own."""
    shape = batch, -1
    return call.each(lambda t: t[rows].unflatten(0, shape), lambda t: t[keys].unflatten(0, shape))


def _alike(
    query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
) -> Iterator[tuple[slice, slice, int]]:
    """Runs of equally long sequences: their tokens, their keys and how many there are."""
    q_bounds = check_bounds("cu_seqlens_q", cu_seqlens_q, query.shape[0])
    k_bounds = check_bounds("cu_seqlens_k", cu_seqlens_k, key.shape[0])
    lens = [
        (b - a, d - c)
        for (a, b), (c, d) in zip(
            itertools.pairwise(q_bounds), itertools.pairwise(k_bounds), strict=True
        )
    ]
    first = 0
    for (query_len, key_len), run in itertools.groupby(lens):
        left = len(list(run))
        size = min(query_len, _blocked.QUERY_BLOCK) * min(key_len, _blocked.KEY_BLOCK)
        most = max(1, BATCH_SCORES // max(1, size * query.shape[1]))
        while left:
            batch = min(left, most)
            last = first + batch
            if query_len:
                yield (
                    slice(q_bounds[first], q_bounds[last]),
                    slice(k_bounds[first], k_bounds[last]),
                    batch,
                )
            first, left = last, left - batch


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    causal: bool,
    batch_invariant: bool,
    impl: str | None,
) -> tuple[Tensor, Tensor]:
    options = Options(scale, window, softcap, sinks, alibi_slopes)
    how = choose(impl, HAS, query)
    check_batch_invariant(batch_invariant, how)
    packed = query, key, value, cu_seqlens_q, cu_seqlens_k
    found = forward(how, *packed, options, causal=causal, batch_invariant=batch_invariant)
    return found.output, found.lse


def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    causal: bool,
    batch_invariant: bool,
    impl: str | None,
) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=compute)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *outputs)
    ctx.options = inputs[7:]


def _backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    output: Tensor,
    lse: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    causal: bool,
    batch_invariant: bool,
    impl: str | None,
    want_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = backward(
        choose(impl, HAS, query),
        grad_output,
        grad_lse,
        query,
        key,
        value,
        output,
        lse,
        cu_seqlens_q,
        cu_seqlens_k,
        Options(scale, window, softcap, sinks, alibi_slopes),
        causal=causal,
        want_slopes=want_slopes,
    )
    return found[0], found[1], found[2], found[3], found[4]


def _fake_backward(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    output: Tensor,
    lse: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    causal: bool,
    batch_invariant: bool,
    impl: str | None,
    want_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    per_head = query.new_empty(query.shape[1], dtype=torch.float32)
    whole = [t.new_empty(t.shape) for t in (query, key, value)]
    return whole[0], whole[1], whole[2], per_head, torch.empty_like(per_head)


def _gradients(
    ctx: Any, backward: Callable[..., Any], grad_output: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    *inputs, output, lse = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    want_slopes = ctx.needs_input_grad[6]
    query, key, value, sinks, slopes = backward(
        grad_output, grad_lse, *inputs, output, lse, *ctx.options, want_slopes
    )
    sinks = sinks if ctx.needs_input_grad[5] else None
    slopes = slopes if want_slopes else None
    return query, key, value, None, None, sinks, slopes, None, None, None, None, None, None


PREFILL = Operation(
    "prefill",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_backward,
    fake_backward=_fake_backward,
    gradients=_gradients,
)
"""query, key, value, cu_seqlens_q, cu_seqlens_k, sinks, alibi_slopes, scale, window, softcap,
causal, batch_invariant, impl to output and LSE."""
