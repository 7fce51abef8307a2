"""Flash-Attention 2 and 3 (Dao 2023; Shah et al. 2024), from their packages or vLLM's build."""

import functools
from collections.abc import Callable
from typing import Any

from benches.cases import PackedCase, PagedCase
from benches.peers import Call, Peer, theirs
from benches.peers.torch_attention import backward_of


def _two(case: PackedCase) -> Call:
    flash_attn_func = theirs("flash_attn").flash_attn_func

    q, k, v = case.tokens_first()
    return lambda: flash_attn_func(q, k, v, causal=True).flatten(0, 1)


def _three(case: PackedCase) -> Call:
    flash_attn_func = theirs("flash_attn_interface").flash_attn_func

    q, k, v = case.tokens_first()

    def call() -> Any:
        found = flash_attn_func(q, k, v, causal=True)
        return (found[0] if isinstance(found, tuple) else found).flatten(0, 1)

    return call


def _backward(forward: Callable[[PackedCase], Call], case: PackedCase) -> Call:
    return backward_of(forward(case)(), case.tensors)


def _vllm_packed(case: PackedCase) -> Call:
    flash_attn_varlen_func = theirs("vllm.vllm_flash_attn").flash_attn_varlen_func

    q, k, v = case.tensors
    bounds, longest = case.cu_seqlens, case.length
    return lambda: flash_attn_varlen_func(
        q, k, v, longest, bounds, longest, cu_seqlens_k=bounds, causal=True, fa_version=3
    )


def _vllm_paged(case: PagedCase) -> Call:
    flash_attn_varlen_func = theirs("vllm.vllm_flash_attn").flash_attn_varlen_func

    return lambda: flash_attn_varlen_func(
        case.query,
        case.key_cache,
        case.value_cache,
        max(case.query_lens),
        case.cu_seqlens_q,
        max(case.lens),
        seqused_k=case.seq_lens,
        block_table=case.block_table,
        causal=True,
        fa_version=3,
    )


def _paged(module: str, case: PagedCase) -> Call:
    flash = __import__(module).flash_attn_with_kvcache
    q = case.query[:, None]
    named = "page_table" if module == "flash_attn_interface" else "block_table"
    more = {named: case.block_table, "cache_seqlens": case.seq_lens, "causal": True}
    return lambda: flash(q, case.key_cache, case.value_cache, **more)[:, 0]


TWO, THREE, VLLM = ("flash_attn",), ("flash_attn_interface",), ("vllm.vllm_flash_attn",)
PEERS = [
    Peer("flash-attention 2", "prefill", _two, TWO),
    Peer("flash-attention 2", "prefill_backward", functools.partial(_backward, _two), TWO),
    Peer("flash-attention 2", "paged_decode", functools.partial(_paged, TWO[0]), TWO),
    Peer("fa3", "prefill", _three, THREE),
    Peer("fa3", "prefill_backward", functools.partial(_backward, _three), THREE),
    Peer("fa3", "paged_decode", functools.partial(_paged, THREE[0]), THREE),
    Peer("vllm fa3", "prefill", _vllm_packed, VLLM),
    Peer("vllm fa3", "paged_decode", _vllm_paged, VLLM),
    Peer("vllm fa3", "paged_extend", _vllm_paged, VLLM),
]
