"""Figures of blocks.attention: speed beside torch, share of memory bandwidth, kernel resources."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benches import machine
from benches.bench_attention import contiguous, inputs, sizes
from benches.bench_paged import STORED, quantised_inputs, shared_inputs, tree_inputs
from benches.figures import _kernels
from benches.figures.row import Measured, Row
from benches.launch_cost import measure as measure_launches
from benches.shapes import LLAMA_200M, TINY
from blocks.attention import (
    cascade_decode,
    paged_decode,
    paged_decode_work,
    paged_extend,
    paged_extend_work,
    tree_decode,
)
from tests.aot import SHARED_LIMIT, compile_all

COMMAND = "python -m benches.figures --area attention"
LAUNCH_COMMAND = "python -m benches.launch_cost"
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


def quantised_over_bf16() -> Measured:
    calls = {}
    for stored in STORED:
        given, scales, _ = quantised_inputs(LLAMA_200M, 8, 2048, stored, DEVICE)
        calls[stored] = functools.partial(paged_decode, *given, **scales)
    times = machine.race(calls, DEVICE, rounds=15)
    fp8, int8 = (times[stored] / times["bf16"] for stored in ("fp8", "int8"))
    return Measured(f"fp8 {fp8:.2f}x, int8 {int8:.2f}x", None)


def drafts_over_one() -> Measured:
    calls = {}
    for name, num_drafts in (("one", 1), ("four", 4), ("eight", 8)):
        given = tree_inputs(LLAMA_200M, 8, 2048, num_drafts, DEVICE)
        calls[name] = functools.partial(tree_decode, *given)
    times = machine.race(calls, DEVICE, rounds=15)
    four, eight = (times[name] / times["one"] for name in ("four", "eight"))
    return Measured(f"4 drafts {four:.2f}x, 8 drafts {eight:.2f}x", None)


def cascade_against_decode() -> Measured:
    given, prefixes = shared_inputs(LLAMA_200M, 16, 2048, 64, DEVICE)
    calls = {
        "cascade": lambda: cascade_decode(*given, prefixes),
        "decode": lambda: paged_decode(*given),
    }
    times = machine.race(calls, DEVICE, rounds=15)
    faster = times["decode"] / times["cascade"]
    return Measured(f"{faster:.1f}x ({times['cascade'] * 1e3:.2f} ms)", faster >= 1)


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


def launch_cost() -> Measured:
    found = launch_costs()
    worst = max(parts["launch"] for parts in found.values())
    triton = max(parts["triton"] for parts in found.values())
    return Measured(f"{worst:.1f} us ({triton:.1f} by Triton's own dispatch)", worst <= 8)


def call_cost() -> Measured:
    shown = [f"{name} {parts['call']:.1f} us" for name, parts in launch_costs().items()]
    return Measured("; ".join(shown), None)


@functools.cache
def launch_costs() -> dict[str, dict[str, float]]:
    return measure_launches()


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
        "time of a CPU decode over quantised keys and values, over bf16's",
        "",
        COMMAND,
        quantised_over_bf16,
    )
    yield Row("time of a CPU tree decode, over that of one draft", "", COMMAND, drafts_over_one)
    yield Row(
        "CPU cascade of 16 sequences sharing 2,048 tokens against a plain decode",
        ">= 1x",
        COMMAND,
        cascade_against_decode,
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
    yield Row(
        "host cost per launch on sm_90, the driver call left out (driver and device questions "
        "replaced, tensors in host memory; the slowest of paged_decode and prefill)",
        "<= 8 us",
        LAUNCH_COMMAND,
        launch_cost,
    )
    yield Row(
        "the same for the whole Python call: checks, choices, output memory, launch",
        "",
        LAUNCH_COMMAND,
        call_cost,
    )
    yield from _kernels.rows("attention", ("D", "P", "T", "H"))
