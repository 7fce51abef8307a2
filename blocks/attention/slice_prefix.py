"""``SlicePrefix``: keys and values that the token slices of a sequence share, under autograd."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blocks._checks import check_dtype, check_same_device, expects_tensors, fail
from blocks.attention._layout import REFERENCE_DTYPES
from blocks.attention.slice import resolve, slice_attention
from blocks.attention.slice_backward import slice_attention_backward


@dataclasses.dataclass(frozen=True)
class SlicePrefix:
    """Keys and values of one sequence (or a batch) on one layer, and their gradients.

    For pipelines that build one autograd graph a slice: ``attend`` writes a slice's keys and values
    behind those of the slices before it, and its backward hands back their complete gradients,
    because the later slices, which saw them too, have run theirs.

    Invariants:
        1. Between forward and backward of a slice, the rows before its end stay as they were.
        2. ``grad_key`` and ``grad_value`` are zero outside of the backward of a sequence: what
           slices take out is zeroed, so after slice 0 all of it is.
        3. ``pending`` holds the starts of the slices whose backward is still to come.
        4. ``ends`` holds the ends of the slices written; rows before the last of them are keys and
           values of this sequence.

    key, value: [*batch, max_len, num_kv_heads, head_dim].
    grad_key, grad_value: the same in float32 (float64 for float64).
    """

    key: Tensor
    value: Tensor
    grad_key: Tensor
    grad_value: Tensor
    pending: set[int] = dataclasses.field(default_factory=set)
    ends: set[int] = dataclasses.field(default_factory=set)

    @classmethod
    def empty(
        cls,
        *shape: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "SlicePrefix":
        """Room for [*batch, max_len, num_kv_heads, head_dim] = ``shape``.

        >>> SlicePrefix.empty(100, 2, 64).grad_value.shape
        torch.Size([100, 2, 64])
        """
        sizes = all(isinstance(size, int) and size >= 0 for size in shape)
        if len(shape) not in (3, 4) or not sizes:
            raise fail("shape", "[*batch, max_len, num_kv_heads, head_dim]", list(shape))
        if dtype not in (None, *REFERENCE_DTYPES):
            raise fail("dtype", " or ".join(map(str, REFERENCE_DTYPES)), dtype)
        key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        compute = torch.promote_types(key.dtype, torch.float32)
        sums = [torch.zeros_like(t, dtype=compute) for t in (key, value)]
        return cls(key, value, sums[0], sums[1])

    @expects_tensors
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        *,
        cu_seqlens: Tensor | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        batch_invariant: bool = False,
        impl: str | None = None,
    ) -> Tensor:
        """Append a slice's keys and values at ``start`` and attend to all up to its end.

        Differentiable in query, key, value, sinks and alibi_slopes. Run the slices of a sequence
        from first to last and their backwards from last to first.

        Args:
            query: [*batch, slice_len, num_heads, head_dim].
            key: [*batch, slice_len, num_kv_heads, head_dim] of the same tokens.
            value: as key.
            start: position of the slice's first token, none before it left out; 0 begins a new
                sequence.
            cu_seqlens, scale, window, softcap, sinks, alibi_slopes, batch_invariant, impl: see
                ``slice_attention``.

        Returns:
            Output of query's shape and dtype.

        Raises:
            ValueError, TypeError: what does not fit, and then nothing has been written; in the
                backward, slices out of order.
        """
        room = self.key[..., : key.shape[-3], :, :].shape
        if key.shape != value.shape or key.shape != room or query.shape[:-2] != key.shape[:-2]:
            shapes = f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
            expected = f"one slice_len and the other sizes of {list(self.key.shape)}"
            raise fail("shapes of query, key and value", expected, shapes)
        check_dtype("key", key, (self.key.dtype,), "the dtype of the prefix")
        check_dtype("value", value, (self.key.dtype,), "the dtype of the prefix")
        check_same_device(query=query, key=key, value=value, prefix=self.key)
        per_call = (scale, window, softcap, sinks, alibi_slopes)
        buffers = (query, self.key, self.value)
        resolve(*buffers, start, cu_seqlens, per_call, batch_invariant, impl)
        written = max(self.ends, default=0)
        if start > written:
            raise fail("start", f"at most {written}, tokens written", start, "run slices in order")
        options = {"cu_seqlens": cu_seqlens, "scale": scale, "window": window}
        options |= {"softcap": softcap, "impl": impl}
        settings = (self, start, options, batch_invariant)
        return _Attend.apply(query, key, value, sinks, alibi_slopes, *settings)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        alibi_slopes: Tensor | None,
        prefix: SlicePrefix,
        start: int,
        options: dict[str, Any],
        batch_invariant: bool,
    ) -> Tensor:
        slice_len = key.shape[-3]
        prefix.key.narrow(-3, start, slice_len).copy_(key)
        prefix.value.narrow(-3, start, slice_len).copy_(value)
        per_head = {"sinks": sinks, "alibi_slopes": alibi_slopes}
        how = {**per_head, **options, "batch_invariant": batch_invariant}
        output, lse = slice_attention(query, prefix.key, prefix.value, start, **how)
        if start == 0:
            prefix.pending.clear()
            prefix.ends.clear()
        prefix.ends.add(start + slice_len)
        if any(ctx.needs_input_grad):
            prefix.pending.add(start)
        ctx.save_for_backward(query, output, lse, sinks, alibi_slopes)
        ctx.prefix, ctx.start, ctx.options = prefix, start, options
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        query, output, lse, sinks, alibi_slopes = ctx.saved_tensors
        prefix, start, options = ctx.prefix, ctx.start, ctx.options
        if max(prefix.pending, default=start) > start:
            order = "slices run backward from last to first"
            raise fail("start", f"{max(prefix.pending)}, the last slice", start, order)
        grads = [
            t.new_zeros(t.shape) if t is not None and needed else None
            for t, needed in zip((sinks, alibi_slopes), ctx.needs_input_grad[3:5], strict=True)
        ]
        how = {**options, "impl": "torch" if options["impl"] == "native" else options["impl"]}
        grad_query = slice_attention_backward(
            grad_output,
            query,
            prefix.key,
            prefix.value,
            output,
            lse,
            start,
            prefix.grad_key,
            prefix.grad_value,
            sinks=sinks,
            alibi_slopes=alibi_slopes,
            grad_sinks=grads[0],
            grad_alibi_slopes=grads[1],
            **how,
        )
        prefix.pending.discard(start)
        taken = []
        for total in (prefix.grad_key, prefix.grad_value):
            part = total.narrow(-3, start, query.shape[-3])
            taken.append(part.to(query.dtype, copy=True))
            part.zero_()
        return grad_query, *taken, *grads, None, None, None, None
