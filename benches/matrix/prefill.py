"""Rows P1 to P4 and T1 to T2: many queries a sequence, forward and backward."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benches.cases import PackedCase, PagedCase
from benches.matrix.row import Measurement, Row, Setting, operation, raced, timed
from benches.peers.torch_attention import backward_of, upstream
from blocks._work import Work
from blocks.attention import paged_extend, prefill

BACKWARD_FLOPS = 2.5
"""Products of the backward pass over those of the forward pass (Dao 2023, section 3.2)."""


def packed(
    setting: Setting, length: int, heads: int, kv_heads: int, head_dim: int, **more: Any
) -> PackedCase:
    """The case of a row; when tiny, a short sequence and two groups."""
    batch = more.pop("batch", 1)
    if setting.tiny:
        length, heads, kv_heads, batch = min(length, 40), 2 * (heads // kv_heads), 2, 1
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    return PackedCase.random(
        batch,
        length,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=setting.size(head_dim, 32),
        dtype=dtype,
        device=setting.device,
        **more,
    )


def forward(
    setting: Setting, length: int, heads: int, kv_heads: int, head_dim: int, batch: int = 1
) -> Measurement:
    case = packed(setting, length, heads, kv_heads, head_dim, batch=batch)

    def call() -> Any:
        return prefill(*case.tensors, case.cu_seqlens, impl=setting.impl)

    return raced(setting, "prefill", case, call, case.check, case.work, "TFLOP/s")


def backward(setting: Setting, length: int) -> Measurement:
    case = packed(setting, length, 64, 8, 128, grad=True)
    output = prefill(*case.tensors, case.cu_seqlens, impl=setting.impl)
    grad = upstream(output)

    def check(found: tuple[Tensor, ...]) -> None:
        case.check_gradients(found, grad)

    read = sum(t.numel() * t.element_size() for t in (*case.tensors, *case.tensors, output, grad))
    work = Work(int(BACKWARD_FLOPS * case.work.flops), read)
    call = backward_of(output, case.tensors)
    return raced(setting, "prefill_backward", case, call, check, work, "TFLOP/s")


def extend_case(
    setting: Setting, query_lens: list[int], lens: list[int], heads: int = 32, kv_heads: int = 8
) -> PagedCase:
    if setting.tiny:
        query_lens, lens = [min(n, 8) for n in query_lens[:2]], [min(n, 24) for n in lens[:2]]
        heads, kv_heads = 2 * (heads // kv_heads), 2
    return PagedCase.random(
        lens,
        query_lens,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=setting.size(128, 32),
        dtype=torch.float32 if setting.tiny else torch.bfloat16,
        device=setting.device,
    )


def extend_call(setting: Setting, case: PagedCase) -> Any:
    """One chunk of a case, as a call."""
    given = (case.query, case.key_cache, case.value_cache, case.block_table, case.seq_lens)
    return lambda: paged_extend(*given, case.cu_seqlens_q, impl=setting.impl)


def extend(setting: Setting, count: int, prefix: int, batch: int) -> Measurement:
    case = extend_case(setting, [count] * batch, [prefix + count] * batch)
    call = extend_call(setting, case)
    return raced(setting, "paged_extend", case, call, case.check, case.work, "TFLOP/s")


def mixed(setting: Setting) -> Measurement:
    """16K new tokens and 64 decodes in one launch, over the two launches one after the other."""
    chunks, contexts = [4096] * 4, [4096] * 64
    alone = extend_case(setting, chunks, chunks)
    decodes = extend_case(setting, [1] * len(contexts), contexts)
    both = extend_case(setting, [*chunks, *[1] * len(contexts)], [*chunks, *contexts])
    call = extend_call(setting, both)
    both.check(call())
    first, second = extend_call(setting, alone), extend_call(setting, decodes)

    def apart() -> None:
        first()
        second()

    times = timed(setting, {"ours": call, "ours, two launches": apart})
    ratio = times["ours, two launches"].best.median_s / times["ours"].best.median_s
    return Measurement(ratio, times)


def sliced(setting: Setting) -> Measurement:
    """Forward and backward of one sequence in eight slices, over that of the whole."""
    forward = operation("attention.slice_attention")
    backward = operation("attention.slice_attention_backward")
    case = packed(setting, 8192, 32, 8, 128, grad=True)
    query, key, value = (t.detach() for t in case.tensors)
    size = case.length // 8
    grad = upstream(query)
    sums = [torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (key, value)]

    def in_slices() -> tuple[Tensor, ...]:
        starts = range(0, case.length, size)
        states = [forward(query[s : s + size], key, value, s, impl=setting.impl) for s in starts]
        for total in sums:
            total.zero_()
        found = []
        for start, state in zip(reversed(starts), reversed(states), strict=True):
            rows = slice(start, start + size)
            given = (grad[rows], query[rows], key, value, *state, start, *sums)
            found.append(backward(*given, impl=setting.impl))
        return torch.cat(found[::-1]), *sums

    def whole() -> tuple[Tensor, ...]:
        output = prefill(*case.tensors, case.cu_seqlens, impl=setting.impl)
        return torch.autograd.grad(output, case.tensors, grad)

    q, k, v = (t[None].transpose(1, 2) for t in (query, key, value))
    if case.group > 1:
        k, v = (t.repeat_interleave(case.group, 1) for t in (k, v))

    def by_torch() -> None:
        """Without groups and without sums over slices, which it has no call for."""
        for end in range(size, case.length + 1, size):
            parts = (q[:, :, end - size : end], k[:, :, :end], v[:, :, :end])
            inputs = [part.detach().requires_grad_() for part in parts]
            mask = causal_lower_right(size, end)
            output = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
            torch.autograd.grad(output, inputs, output.detach())

    case.check_gradients(in_slices(), grad)
    calls = {"ours": in_slices, "ours, whole": whole, "sdpa lower right": by_torch}
    times = timed(setting, calls)
    ratio = times["ours"].best.median_s / times["ours, whole"].best.median_s
    return Measurement(ratio, times)


def rows() -> Iterator[Row]:
    for name, length, one, two in (
        ("4k", 4096, 480, 560),
        ("8k", 8192, 520, 610),
        ("16k", 16384, 540, 640),
    ):
        yield Row(
            f"P1-{name}",
            f"causal prefill bf16, B1 64/8 x 128, {length} tokens",
            "TFLOP/s",
            one,
            two,
            functools.partial(forward, length=length, heads=64, kv_heads=8, head_dim=128),
            {"sdpa cudnn": 0.80, "sdpa flash": 1.4},
        )
    yield Row(
        "P2",
        "causal prefill bf16, B2 32/32 x 64, 8192 tokens each",
        "TFLOP/s",
        360,
        430,
        functools.partial(forward, length=8192, heads=32, kv_heads=32, head_dim=64, batch=2),
        {"sdpa cudnn": 1.0},
    )
    wanted = {"vllm fa3": 0.75, "vllm triton": 2.0, "flashinfer": 0.95}
    for count, prefix, batch, one, two in (
        (512, 4096, 8, 380, 450),
        (512, 32768, 4, 400, 480),
        (2048, 4096, 4, 400, 480),
        (2048, 32768, 4, 420, 500),
    ):
        yield Row(
            f"P3-{count}-{prefix // 1024}k",
            f"paged chunk of {count} over {prefix} cached, B{batch} 32/8 x 128",
            "TFLOP/s",
            one,
            two,
            functools.partial(extend, count=count, prefix=prefix, batch=batch),
            wanted,
        )
    yield Row(
        "P4",
        "4 chunks of 4096 and 64 decodes in one launch, over two launches",
        "x speed",
        0.8,
        1.0,
        mixed,
    )
    for name, length, one, two in (
        ("4k", 4096, 330, 450),
        ("8k", 8192, 380, 510),
        ("16k", 16384, 400, 540),
    ):
        yield Row(
            f"T1-{name}",
            f"backward of causal prefill bf16, B1 64/8 x 128, {length} tokens",
            "TFLOP/s",
            one,
            two,
            functools.partial(backward, length=length),
            {"sdpa cudnn": 0.70, "sdpa flash": 1.4, "flex": 1.2},
        )
    yield Row(
        "T2",
        "8192 tokens in 8 slices, forward and backward, over the whole at once",
        "x time",
        1.15,
        1.05,
        sliced,
        {"sdpa lower right": 1.5},
    )
