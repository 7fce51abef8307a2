"""FlashInfer (Ye et al. 2025): planned outside the call, as a server plans once a step."""

import functools
from typing import Any

import torch
from torch import Tensor

from benches.cases import PagedCase, running_sums
from benches.peers import Call, Peer, Unfit, theirs

NEEDS = ("flashinfer",)
WORKSPACE_BYTES = 256 << 20


def _pages(case: PagedCase) -> tuple[Tensor, Tensor, Tensor]:
    """Page counts (running sums), page ids, tokens on each last page."""
    size, device = case.block_size, case.query.device
    counts = [-(-n // size) for n in case.lens]
    indices = torch.cat([row[:n] for row, n in zip(case.block_table, counts, strict=True)])
    last = [n - (count - 1) * size for n, count in zip(case.lens, counts, strict=True)]
    return running_sums(counts, device), indices, torch.tensor(last, device=device).int()


def _workspace(case: PagedCase) -> Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=case.query.device)


def _decode(case: PagedCase, *, tensor_cores: bool, plan_too: bool = False) -> Call:
    BatchDecodeWithPagedKVCacheWrapper = theirs("flashinfer").BatchDecodeWithPagedKVCacheWrapper

    if case.group > 8 and not tensor_cores:
        raise Unfit(f"no kernel for groups of {case.group} without tensor cores")
    wrapper = BatchDecodeWithPagedKVCacheWrapper(_workspace(case), use_tensor_cores=tensor_cores)
    pages = _pages(case)

    def plan() -> None:
        wrapper.plan(
            *pages,
            case.query.shape[1],
            case.key_cache.shape[2],
            case.query.shape[2],
            case.block_size,
            q_data_type=case.query.dtype,
            kv_data_type=case.key_cache.dtype,
        )

    def run() -> Any:
        if plan_too:
            plan()
        return wrapper.run(case.query, (case.key_cache, case.value_cache))

    plan()
    return run


def _extend(case: PagedCase, backend: str) -> Call:
    BatchPrefillWithPagedKVCacheWrapper = theirs("flashinfer").BatchPrefillWithPagedKVCacheWrapper

    wrapper = BatchPrefillWithPagedKVCacheWrapper(_workspace(case), backend=backend)
    wrapper.plan(
        case.cu_seqlens_q,
        *_pages(case),
        case.query.shape[1],
        case.key_cache.shape[2],
        case.query.shape[2],
        case.block_size,
        causal=True,
        q_data_type=case.query.dtype,
        kv_data_type=case.key_cache.dtype,
    )
    return lambda: wrapper.run(case.query, (case.key_cache, case.value_cache))


def _rms_norm(case: Any) -> Call:
    rmsnorm = theirs("flashinfer").rmsnorm

    return lambda: rmsnorm(case.x, case.weight, case.eps)


def _add_rms_norm(case: Any) -> Call:
    """Theirs writes over both inputs: the check sees the first call, times go on from there."""
    fused_add_rmsnorm = theirs("flashinfer").fused_add_rmsnorm

    x, residual = case.x.clone(), case.residual.clone()

    def call() -> Tensor:
        fused_add_rmsnorm(x, residual, case.weight, case.eps)
        return x

    return call


def _silu_and_mul(case: Any) -> Call:
    silu_and_mul = theirs("flashinfer").silu_and_mul

    return lambda: silu_and_mul(case.x)


def _rope(case: Any) -> Call:
    apply_rope_with_cos_sin_cache = theirs("flashinfer").apply_rope_with_cos_sin_cache

    q, k = case.query.flatten(1), case.key.flatten(1)
    size, table, shape = case.query.shape[2], case.cos_sin, case.query.shape
    return lambda: apply_rope_with_cos_sin_cache(case.positions, q, k, size, table)[0].view(shape)


def _sample(case: Any) -> Call:
    top_k_top_p_sampling_from_logits = theirs(
        "flashinfer.sampling"
    ).top_k_top_p_sampling_from_logits

    return lambda: top_k_top_p_sampling_from_logits(case.logits, case.top_k, case.top_p)


def _mla(case: Any) -> Call:
    BatchMLAPagedAttentionWrapper = theirs("flashinfer.mla").BatchMLAPagedAttentionWrapper

    device = case.query.device
    wrapper = BatchMLAPagedAttentionWrapper(
        torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    )
    counts = [-(-n // case.block_size) for n in case.lens]
    indices = torch.cat([row[:n] for row, n in zip(case.block_table, counts, strict=True)])
    latent = case.latent_dim
    rows = case.query.shape[2]
    wrapper.plan(
        running_sums([1] * len(counts), device),
        running_sums(counts, device),
        indices,
        case.seq_lens,
        case.query.shape[1],
        latent,
        rows - latent,
        case.block_size,
        False,
        case.scale,
        case.query.dtype,
        case.latent_cache.dtype,
    )
    q, cache = case.query, case.latent_cache
    parts = (q[..., :latent], q[..., latent:], cache[..., :latent], cache[..., latent:])
    return lambda: wrapper.run(*parts)


PEERS = [
    Peer("flashinfer", "paged_decode", functools.partial(_decode, tensor_cores=False), NEEDS),
    Peer("flashinfer tc", "paged_decode", functools.partial(_decode, tensor_cores=True), NEEDS),
    Peer(
        "flashinfer with plan",
        "paged_decode",
        functools.partial(_decode, tensor_cores=True, plan_too=True),
        NEEDS,
    ),
    Peer("flashinfer fa2", "paged_extend", functools.partial(_extend, backend="fa2"), NEEDS),
    Peer("flashinfer fa3", "paged_extend", functools.partial(_extend, backend="fa3"), NEEDS),
    Peer("flashinfer", "mla_decode", _mla, NEEDS),
    Peer("flashinfer", "rms_norm", _rms_norm, NEEDS),
    Peer("flashinfer", "add_rms_norm", _add_rms_norm, NEEDS),
    Peer("flashinfer", "silu_and_mul", _silu_and_mul, NEEDS),
    Peer("flashinfer", "rope", _rope, NEEDS),
    Peer("flashinfer", "sample", _sample, NEEDS),
]
