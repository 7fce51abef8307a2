"""vLLM's Triton attention over pages."""

import inspect
from typing import Any

import torch
from torch import Tensor

from benches.cases import PagedCase
from benches.peers import Call, Peer, theirs

SEGMENTS = 16
"""Splits of the context in its split form."""


def _unified() -> Any:
    try:
        return theirs("vllm.v1.attention.ops.triton_unified_attention").unified_attention
    except ImportError:  # where it was before
        return theirs("vllm.attention.ops.triton_unified_attention").unified_attention


def _paged(case: PagedCase) -> Call:
    unified = _unified()
    num_tokens, num_heads, head_dim = case.query.shape
    out = torch.empty_like(case.query)
    num_seqs, num_kv_heads = len(case.lens), case.key_cache.shape[2]
    given: dict[str, Any] = {
        "q": case.query,
        "k": case.key_cache,
        "v": case.value_cache,
        "out": out,
        "cu_seqlens_q": case.cu_seqlens_q,
        "max_seqlen_q": max(case.query_lens),
        "seqused_k": case.seq_lens,
        "max_seqlen_k": max(case.lens),
        "softmax_scale": head_dim**-0.5,
        "causal": True,
        "window_size": (-1, -1),
        "block_table": case.block_table,
        "softcap": 0.0,
        "q_descale": None,
        "k_descale": torch.ones((num_seqs, num_kv_heads), device=out.device),
        "v_descale": torch.ones((num_seqs, num_kv_heads), device=out.device),
    }
    padded = 1 << (head_dim - 1).bit_length()
    states = (num_tokens, num_heads, SEGMENTS)
    split: dict[str, Any] = {
        "seq_threshold_3D": max(1, 128 // num_kv_heads),
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty((*states, padded), device=out.device),
        "softmax_segm_max": torch.empty(states, device=out.device),
        "softmax_segm_expsum": torch.empty(states, device=out.device),
    }
    known = inspect.signature(unified).parameters  # the split form's buffers came with a version
    given |= {name: value for name, value in split.items() if name in known}

    def call() -> Tensor:
        unified(**given)
        return out

    return call


PEERS = [
    Peer("vllm triton", "paged_decode", _paged, ("vllm",)),
    Peer("vllm triton", "paged_extend", _paged, ("vllm",)),
]
