"""Training attention: forward and backward beside torch's, and token slices beside no slices."""

import pytest
import torch
import torch.nn.functional as F

from benches.bench_attention import sizes
from benches.shapes import LLAMA_8B, LLAMA_200M, ModelShape
from blocks._work import Work
from blocks.attention import (
    prefill,
    prefill_backward_work,
    prefill_work,
    slice_attention,
    slice_attention_backward,
)
from tests.numerics import assert_close

LENGTHS = [
    pytest.param(LLAMA_200M, 1024, id="llama200m-1k"),
    pytest.param(LLAMA_8B, 1024, id="llama8b-1k"),
]
ON_GPU = [pytest.param(LLAMA_8B, n, id=f"llama8b-{n // 1024}k") for n in (4096, 8192, 16384)]
SHAPES = LENGTHS + (ON_GPU if torch.cuda.is_available() else [])
SLICES = 8


def training_inputs(model: ModelShape, length: int, device: torch.device) -> list[torch.Tensor]:
    """bf16 query, key, value and gradient of the output."""
    counts = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    shapes = [(length, count, model.head_dim) for count in counts]
    return [torch.randn(shape, device=device).bfloat16() for shape in shapes]


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1)


def both_ways(model: ModelShape, length: int) -> Work:
    """Work of forward and backward together."""
    forward = prefill_work([length], **sizes(model))
    backward = prefill_backward_work([length], **sizes(model))
    return Work(forward.flops + backward.flops, forward.bytes + backward.bytes)


def sliced_gradients(
    tensors: list[torch.Tensor], num_slices: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, the sequence in equal slices."""
    query, key, value, grad = tensors
    step = len(query) // num_slices
    rows = [slice(start, start + step) for start in range(0, len(query), step)]
    states = [slice_attention(query[r], key, value, r.start) for r in rows]
    sums = [torch.zeros_like(t, dtype=torch.float32) for t in (key, value)]
    grads = [
        slice_attention_backward(grad[r], query[r], key, value, *state, r.start, sums[0], sums[1])
        for r, state in zip(reversed(rows), reversed(states), strict=True)
    ]
    return torch.cat(grads[::-1]), sums[0], sums[1]


@pytest.mark.parametrize("how", ["ours", "sdpa"])
@pytest.mark.parametrize(("model", "length"), SHAPES)
def bench_prefill_forward_and_backward(timed, device, model, length, how):
    *inputs, grad = training_inputs(model, length, device)
    leaves = [t.requires_grad_() for t in inputs]
    bounds = torch.tensor([0, length], dtype=torch.int32, device=device)
    calls = {
        "ours": lambda: torch.autograd.grad(
            prefill(leaves[0], leaves[1], leaves[2], bounds), leaves, grad
        ),
        "sdpa": lambda: torch.autograd.grad(sdpa(*leaves), leaves, grad),
    }
    for ours, theirs in zip(calls["ours"](), calls["sdpa"](), strict=True):
        assert_close(ours, theirs, slack=2)  # both round
    timed(calls[how], work=both_ways(model, length), how=how)


@pytest.mark.parametrize("num_slices", [1, SLICES])
@pytest.mark.parametrize(("model", "length"), SHAPES)
def bench_slices_forward_and_backward(timed, device, model, length, num_slices):
    tensors = training_inputs(model, length, device)
    for sliced, whole in zip(
        sliced_gradients(tensors, num_slices), sliced_gradients(tensors, 1), strict=True
    ):
        assert_close(sliced, whole, dtype=torch.bfloat16)
    timed(
        lambda: sliced_gradients(tensors, num_slices),
        work=both_ways(model, length),
        num_slices=num_slices,
    )
