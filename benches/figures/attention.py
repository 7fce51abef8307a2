"""Figures of blocks.attention: speed beside torch, share of memory bandwidth, kernel resources."""

import dataclasses
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benches import machine
from benches.bench_attention import contiguous, inputs, sizes
from benches.figures import _kernels
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M, TINY
from blocks.attention import paged_decode, paged_decode_work, paged_extend, paged_extend_work
from tests.aot import SHARED_LIMIT, compile_all

COMMAND = "python -m benches.figures --area attention"
DEVICE = torch.device("cpu")


def decode_times() -> dict[str, float]:
    """Seconds of one decode of 8 sequences of 2,048 tokens, ours and two ways of torch."""
    query, keys, values, table, lens, _ = inputs(LLAMA_200M, 8, 1, 2048, DEVICE)
    k, v = (contiguous(cache, table, 2048).contiguous() for cache in (keys, values))
    q = query[:, :, None]

    def gather() -> torch.Tensor:
        k, v = contiguous(keys, table, 2048), contiguous(values, table, 2048)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    calls = {
        "ours": lambda: paged_decode(query, keys, values, table, lens),
        "contiguous": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "gather": gather,
    }
    return machine.race(calls, DEVICE, rounds=15)


def decode_against_gather() -> Measured:
    times = decode_times()
    ratio = times["gather"] / times["ours"]
    return Measured(f"{ratio:.1f}x ({times['ours'] * 1e3:.2f} ms)", ratio >= 3)


def decode_against_contiguous() -> Measured:
    times = decode_times()
    ratio = times["contiguous"] / times["ours"]
    return Measured(f"{ratio:.1f}x", ratio >= 1)


def decode_bandwidth() -> Measured:
    work = paged_decode_work([2048] * 8, **sizes(LLAMA_200M))
    share = work.bytes / decode_times()["ours"] / machine.peak_bandwidth(DEVICE)
    peak = machine.peak_bandwidth(DEVICE) / 1e9
    return Measured(f"{share:.0%} of {peak:.0f} GB/s", share >= 1 / 1.3)


def chunk_against_contiguous() -> Measured:
    query, keys, values, table, lens, bounds = inputs(LLAMA_200M, 1, 512, 2048, DEVICE)
    k, v = (contiguous(cache, table, 2048).contiguous() for cache in (keys, values))
    mask = torch.arange(512)[:, None] + 1536 >= torch.arange(2048)
    q = query.transpose(0, 1)[None]
    calls = {
        "ours": lambda: paged_extend(query, keys, values, table, lens, bounds),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
    }
    times = machine.race(calls, DEVICE, rounds=11, cold=False)
    ratio = times["sdpa"] / times["ours"]
    work = paged_extend_work([512], [2048], **sizes(LLAMA_200M))
    gflops = work.flops / times["ours"] / 1e9
    return Measured(f"{ratio:.1f}x ({gflops:.0f} GFLOP/s)", ratio >= 1)


MHA = dataclasses.replace(LLAMA_200M, num_kv_heads=16)
"""16 heads without groups: every key is read for one query head, so memory decides."""


def decode_over_contiguous() -> Measured:
    query, keys, values, table, lens, _ = inputs(MHA, 8, 1, 2048, DEVICE)
    k, v = (contiguous(cache, table, 2048).contiguous() for cache in (keys, values))
    q = query[:, :, None]
    calls = {
        "ours": lambda: paged_decode(query, keys, values, table, lens),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
    }
    times = machine.race(calls, DEVICE, rounds=15)
    return _over(times, 1.3)


def prefill_over_causal() -> Measured:
    query, keys, values, table, lens, bounds = inputs(MHA, 1, 2048, 2048, DEVICE)
    k, v = (contiguous(cache, table, 2048).contiguous() for cache in (keys, values))
    q = query.transpose(0, 1)[None]
    calls = {
        "ours": lambda: paged_extend(query, keys, values, table, lens, bounds),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    times = machine.race(calls, DEVICE, rounds=11, cold=False)
    return _over(times, 1.15)


def _over(times: dict[str, float], limit: float) -> Measured:
    ratio = times["ours"] / times["sdpa"]
    text = f"{ratio:.2f}x ({times['ours'] * 1e3:.2f} against {times['sdpa'] * 1e3:.2f} ms)"
    return Measured(text, ratio <= limit)


def host_overhead() -> Measured:
    query, keys, values, table, lens, bounds = inputs(TINY, 1, 1, 16, DEVICE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = []
        for _ in range(2000):
            start = time.thread_time_ns()
            paged_extend(query, keys, values, table, lens, bounds)
            spent.append((time.thread_time_ns() - start) / 1e3)
    finally:
        torch.set_num_threads(threads)
    median = statistics.median(spent)
    return Measured(f"{median:.1f} us", median < 15)


def kernel_resources() -> Measured:
    reports = compile_all("tests.attention.aot_cases", "sm_90")
    shown = ("extend-bf16-d128-g4-plain", "prefill-bf16-d128-g4-plain", "decode-bf16-d128-g4")
    cells = [
        f"{name.split('-')[0]} {reports[name].registers} registers, "
        f"{reports[name].shared_bytes / 1024:.0f} KiB"
        for name in shown
    ]
    fits = all(r.spills == 0 and r.shared_bytes <= SHARED_LIMIT["sm_90"] for r in reports.values())
    return Measured("; ".join(cells), fits and "HGMMA" in reports[shown[0]].opcodes)


def rows() -> Iterator[Row]:
    shape = "8 sequences x 2,048 tokens, 16/4 heads x 64, bf16, cold caches"
    yield Row(
        f"CPU decode against gather + SDPA ({shape})", ">= 3x", COMMAND, decode_against_gather
    )
    yield Row(
        "the same against SDPA on contiguous keys", ">= 1x", COMMAND, decode_against_contiguous
    )
    yield Row(
        "the same: share of the read bandwidth measured beside it",
        ">= 77%",
        COMMAND,
        decode_bandwidth,
    )
    yield Row(
        "CPU chunk of 512 tokens over 1,536 cached, against SDPA on contiguous keys",
        ">= 1x",
        COMMAND,
        chunk_against_contiguous,
    )
    yield Row(
        "CPU paged decode over SDPA on contiguous keys, time (batch 8, 16/16 heads x 64, "
        "context 2,048, bf16)",
        "<= 1.3x",
        COMMAND,
        decode_over_contiguous,
    )
    yield Row(
        "CPU paged prefill over SDPA's causal prefill, time (2,048 tokens, 16/16 heads x 64, bf16)",
        "<= 1.15x",
        COMMAND,
        prefill_over_causal,
    )
    yield Row(
        "whole CPU call on one 16-token sequence, one thread", "< 15 us", COMMAND, host_overhead
    )
    yield Row(
        "Triton kernels at head_dim 128 on sm_90: no spills, wgmma",
        "fits",
        COMMAND,
        kernel_resources,
    )
    yield from _kernels.rows("attention", ("D", "P", "T", "H"))
