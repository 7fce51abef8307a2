"""What torch ships: scaled_dot_product_attention by backend, and FlexAttention."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benches.cases import PackedCase, PagedCase
from benches.peers import Call, Peer, Unfit

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


def _tokens(output: Tensor) -> Tensor:
    return output.transpose(1, 2).flatten(0, 1)


def _expanded(case: PackedCase, backend: SDPBackend) -> tuple[Tensor, ...]:
    """Heads first; one backend has no groups, so there the key heads are repeated beforehand."""
    q, k, v = case.heads_first()
    if backend is SDPBackend.EFFICIENT_ATTENTION and case.group > 1:
        k, v = (t.repeat_interleave(case.group, 1) for t in (k, v))
    return q, k, v


def _sdpa(backend: SDPBackend, case: PackedCase) -> Call:
    if backend is SDPBackend.MATH and case.length > 4096:
        raise Unfit("would hold every score of more than 4096 tokens")
    q, k, v = _expanded(case, backend)

    def call() -> Tensor:
        with sdpa_kernel(backend):
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return _tokens(out)

    return call


def _sdpa_backward(backend: SDPBackend, case: PackedCase) -> Call:
    return backward_of(_sdpa(backend, case)(), case.tensors)


def backward_of(output: Tensor, inputs: tuple[Tensor, ...]) -> Call:
    """The backward pass alone, again and again."""
    grad = upstream(output)
    return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)


def upstream(output: Tensor) -> Tensor:
    """The gradient every backward pass is timed and checked with."""
    generator = torch.Generator(output.device).manual_seed(1)
    return torch.randn(output.shape, generator=generator, device=output.device, dtype=output.dtype)


def _causal(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(case: PackedCase) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = case.heads_first()
    device = q.device.type
    mask = create_block_mask(_causal, None, None, case.length, case.length, device=device)
    flex = _compiled_flex()
    return lambda: _tokens(flex(q, k, v, block_mask=mask, enable_gqa=case.group > 1))


def _flex_backward(case: PackedCase) -> Call:
    return backward_of(_flex(case)(), case.tensors)


def _flex_decode(case: PagedCase) -> Call:
    """One query a sequence over contiguous copies of the keys, padded to the longest."""
    from torch.nn.attention.flex_attention import create_block_mask

    lens, longest = case.seq_lens, max(case.lens)
    table = case.block_table.long()
    k, v = (
        c[table].flatten(1, 2)[:, :longest].transpose(1, 2).contiguous()
        for c in (case.key_cache, case.value_cache)
    )
    q = case.query[:, :, None]

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < lens[batch]

    mask = create_block_mask(seen, len(case.lens), None, 1, longest, device=q.device.type)
    flex = _compiled_flex()
    return lambda: flex(q, k, v, block_mask=mask, enable_gqa=case.group > 1)[:, :, 0]


def _gathered(case: PagedCase) -> Call:
    """Blocks gathered into fresh memory, then torch's attention: the way without a kernel."""
    if len(set(case.lens)) > 1:
        raise Unfit("sequences of different lengths")
    length, count = case.lens[0], case.query_lens[0]
    table = case.block_table.long()
    q = case.query.unflatten(0, (-1, count)).transpose(1, 2)
    rows = torch.arange(count, device=q.device)[:, None] + length - count
    mask = None if count == 1 else rows >= torch.arange(length, device=q.device)

    def call() -> Tensor:
        k, v = (
            c[table].flatten(1, 2)[:, :length].transpose(1, 2)
            for c in (case.key_cache, case.value_cache)
        )
        grouped = q.shape[1] != k.shape[1]
        return _tokens(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped))

    return call


def _expected_to_run_everywhere(name: str) -> bool:
    return name == "sdpa math"


PEERS = [
    *(
        Peer(
            name,
            "prefill",
            functools.partial(_sdpa, b),
            everywhere=_expected_to_run_everywhere(name),
        )
        for name, b in BACKENDS.items()
    ),
    *(
        Peer(
            name,
            "prefill_backward",
            functools.partial(_sdpa_backward, b),
            everywhere=_expected_to_run_everywhere(name),
        )
        for name, b in BACKENDS.items()
    ),
    Peer("flex", "prefill", _flex),
    Peer("flex", "prefill_backward", _flex_backward),
    Peer("flex", "paged_decode", _flex_decode),
    Peer("gather + sdpa", "paged_decode", _gathered, everywhere=True),
    Peer("gather + sdpa", "paged_extend", _gathered, everywhere=True),
]
