"""Figures of the serving recipe: speed beside transformers in one run, memory, host overhead."""

import contextlib
import functools
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benches import machine
from benches.bench_serve import host_microseconds
from benches.figures.row import Measured, Row
from benches.serve_workload import Ask, make_model, mixed, shared_prefix, single
from recipes.serve import LLM, SamplingParams
from recipes.serve.sizes import format_bytes

CACHE_BYTES = 512 << 20
SPARE_BYTES = 600 * 10**6
NIGHTLY = "python -m benches.figures --area serve --nightly"
Workload = Callable[[random.Random], list[Ask]]


def rows() -> Iterator[Row]:
    for running, limit in ((64, 20.0), (256, 20.0)):
        yield Row(
            f"all of a step but the model, {running} running, greedy, with text and metrics",
            f"at most {limit:.0f} us per request",
            "make figures AREA=serve",
            functools.partial(_overhead, running, limit),
        )
    for name, workload, target, rounds in (
        ("one stream, 128 in, 128 out", single, 1.4, 3),
        ("mixed 32 requests", mixed, 2.5, 2),
        ("shared 512-token prefix x 32", shared_prefix, 5.0, 3),
    ):
        yield Row(
            f"{name}, 200M bf16 Llama, against transformers generate",
            f"at least {target} x",
            NIGHTLY,
            functools.partial(_against_transformers, workload, target, rounds),
            nightly=True,
        )
    yield Row("one stream: share of the memory roofline", "", NIGHTLY, _roofline, nightly=True)
    yield Row(
        "peak resident memory over weights and cache, 200M bf16 Llama, mixed 32 requests",
        "at most 600 MB",
        NIGHTLY,
        _memory,
        nightly=True,
    )


def _overhead(running: int, limit: float) -> Measured:
    found = [host_microseconds(running) for _ in range(5)]
    median = statistics.median(found)
    return Measured(f"{median:.1f} us ({min(found):.1f}-{max(found):.1f})", median <= limit)


@contextlib.contextmanager
def _model() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield make_model(Path(folder) / "llama-200m")
        gc.collect()


class Blocks:
    """Our engine on lists of asks."""

    def __init__(self, folder: Path) -> None:
        self.llm = LLM(folder, kv_bytes=CACHE_BYTES)

    def run(self, asks: list[Ask]) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=a.out, ignore_eos=True) for a in asks]
        return [a.token_ids for a in self.llm.generate([a.prompt for a in asks], params)]


class Transformers:
    """``generate`` over left-padded prompts; what is generated past an ask's length is dropped."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run(self, asks: list[Ask]) -> list[list[int]]:
        longest, steps = max(len(a.prompt) for a in asks), max(a.out for a in asks)
        ids = torch.zeros(len(asks), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, ask in enumerate(asks):
            ids[row, longest - len(ask.prompt) :] = torch.tensor(ask.prompt)
            mask[row, longest - len(ask.prompt) :] = 1
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=steps,
            max_new_tokens=steps,
        )
        new = out[:, longest:].tolist()
        return [row[: ask.out] for row, ask in zip(new, asks, strict=True)]


def _against_transformers(workload: Workload, target: float, rounds: int) -> Measured:
    """Both engines in turn on the same asks; each round other token ids; the median ratio."""
    with _model() as folder:
        engines = {"blocks": Blocks(folder), "transformers": Transformers(folder)}
        times: dict[str, list[float]] = {name: [] for name in engines}
        for seed in range(rounds + 1):
            asks = workload(random.Random(seed))
            if seed == 0:  # a short warm-up
                asks = [Ask(ask.prompt, 3) for ask in asks[:2]]
            for name, engine in engines.items():
                started = time.perf_counter()
                answers = engine.run(asks)
                times[name].append(time.perf_counter() - started)
                assert [len(a) for a in answers] == [ask.out for ask in asks]
        ours, theirs = (times[name][1:] for name in ("blocks", "transformers"))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        tokens = sum(ask.out for ask in asks)
        speed = tokens / statistics.median(ours)
    median = statistics.median(ratios)
    text = f"{median:.2f} x ({min(ratios):.2f}-{max(ratios):.2f}), {speed:.0f} tokens/s"
    return Measured(text, median >= target)


def _roofline() -> Measured:
    with _model() as folder:
        engine = Blocks(folder)
        weights = engine.llm.loaded.weight_bytes
        first, whole = [], []
        for seed in range(4):
            (ask,) = single(random.Random(seed))
            for times, out in ((first, 1), (whole, ask.out)):
                started = time.perf_counter()
                engine.run([Ask(random.Random(f"{seed}{out}").sample(range(3, 32000), 128), out)])
                times.append(time.perf_counter() - started)
    decode_s = (statistics.median(whole[1:]) - statistics.median(first[1:])) / 127
    bandwidth = machine.peak_bandwidth(torch.device("cpu"))
    share = weights / decode_s / bandwidth
    text = (
        f"{share:.0%}: {1 / decode_s:.1f} of {bandwidth / weights:.1f} tokens/s "
        f"({weights / 1e6:.0f} MB of weights at {bandwidth / 1e9:.1f} GB/s)"
    )
    return Measured(text, None)


def _memory() -> Measured:
    with _model() as folder:
        command = [sys.executable, "-m", "benches.serve_memory", str(folder), str(CACHE_BYTES)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    spare = found["peak"] - found["weights"] - found["cache"]
    text = (
        f"{spare / 1e6:.0f} MB: peak {format_bytes(found['peak'])}, weights "
        f"{format_bytes(found['weights'])}, cache {format_bytes(found['cache'])}"
    )
    return Measured(text, spare <= SPARE_BYTES)
