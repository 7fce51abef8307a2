"""Figures of the engine's ranks: the same tokens in any layout, and steps cut for a pipeline."""

import contextlib
import dataclasses
import functools
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benches.figures.row import Measured, Row
from benches.prefill_chunks import FIRST, greedy_equal_time, makespans
from benches.stage_batches import (
    NUM_REQUESTS,
    OUTPUT_LEN,
    PROMPT_LEN,
    timed_tokens_a_second,
    wall_tokens_a_second,
)
from benches.stage_pieces import BLOCK, Stages, finish_s, prompt_batch
from blocks.pipeline.slicing import makespan_s
from recipes.model import Decoder, ModelConfig, init_weights, read_config, save_model
from recipes.model.tokenizer import Tokenizer
from recipes.serve import Engine, EngineConfig, Job, SamplingParams
from recipes.serve.loading import detokenizers, load
from recipes.serve.parallel import Layout, ParallelRunner, fork_ranks
from recipes.serve.parallel.piece_cost import PieceCost
from recipes.serve.parallel.step_slices import StepSlices
from recipes.serve.plain_batch import PlainBatch
from tests.serve.models import tiny_tokenizer

COMMAND = "python -m benches.figures --area place"
PROMPT = 512
LAYOUTS = ((2, 1), (1, 2), (2, 2), (4, 1))
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_layers": 4, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 8, "max_positions": 256, "eos_token_ids": (0,),
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "tie_embeddings": True, "num_kv_heads": 1},
    "mistral": {"windows": (7, 7, 7, 7)},
    "mixtral": {"num_experts": 4, "num_experts_per_token": 2},
    "gemma2": {
        "norm_order": "sandwich", "norm_offset": 1.0, "attention_softcap": 5.0,
        "activation": "gelu_tanh", "logit_softcap": 8.0, "windows": (6, None, 6, None),
        "embedding_scale": 2.0, "tie_embeddings": True,
    },
    "gpt2": {
        "norm": "layer", "activation": "gelu_tanh", "gated_mlp": False, "qkv_bias": True,
        "out_bias": True, "mlp_bias": True, "rope": None, "num_kv_heads": 4,
        "tie_embeddings": True,
    },
}  # fmt: skip


def rows() -> Iterator[Row]:
    for tp, pp in LAYOUTS:
        yield Row(
            f"tokens of {tp * pp} ranks (tp={tp}, pp={pp}) equal to those of one process: "
            f"{', '.join(FAMILIES)}; greedy and seeded, preempted, chunked, shared prefixes, "
            "penalties, n = 2",
            "all requests",
            COMMAND,
            functools.partial(_identical, tp, pp),
        )
    for seq_len, stages in ((32768, 4), (32768, 8), (131072, 8)):
        yield Row(
            f"prefill of {seq_len:,} tokens of a 70B over {stages} stages, simulated: greedy "
            "equal-time chunks over exact slices",
            ">= 1 x, whatever the first chunk",
            COMMAND,
            functools.partial(_simulated, seq_len, stages),
        )
    yield Row(
        f"prefill of {PROMPT} tokens by 2 stages (width 256, 8 layers), real: other cuts over "
        "exact slices, from processor time of their runs (in brackets: wall time of forked ranks "
        "here and now)",
        "exact within 5 % of the best",
        COMMAND,
        _real,
    )
    yield Row(
        f"tokens a second of pp=2, two batches in flight over one, {NUM_REQUESTS} requests of "
        f"{PROMPT_LEN} + {OUTPUT_LEN} tokens (width 256, 8 layers), real engine and stages, from "
        "their processor time, a processor each (in brackets: wall time of forked ranks here and "
        "now)",
        ">= 1.5 x of whole steps, more than of steps cut by measured times",
        COMMAND,
        _batches,
    )


@contextlib.contextmanager
def _saved(config: ModelConfig) -> Iterator[Path]:
    decoder = Decoder(config)
    init_weights(decoder, torch.Generator().manual_seed(0), std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        save_model(decoder, folder, tiny_tokenizer())
        yield Path(folder)


def _jobs(rng: random.Random) -> list[Job]:
    heads = [[rng.randrange(1, 320) for _ in range(length)] for length in (8, 24)]
    jobs = []
    for index in range(24):
        prompt = [rng.randrange(1, 320) for _ in range(rng.randint(1, 40))]
        if rng.random() < 0.5:
            prompt = rng.choice(heads) + prompt
        asked: dict[str, Any] = {"temperature": 0.0}
        if index % 3 == 1:
            asked = {"temperature": 0.9, "top_p": 0.9, "seed": index, "n": 2}
        elif index % 3 == 2:
            asked = {"temperature": 0.6, "seed": index, "repetition_penalty": 1.2}
        jobs.append(Job(f"r{index}", prompt, SamplingParams(max_tokens=16, **asked)))
    return jobs


def _tokens(engine: Engine, jobs: list[Job]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {
        j.request_id: [[] for _ in range(j.params.n)] for j in jobs
    }
    for job in jobs:
        engine.add(job)
    while engine.has_work():
        for delta in engine.step():
            assert delta.error is None, delta.error
            found[delta.request_id][delta.index] += delta.token_ids
    return found


def _identical(tp: int, pp: int) -> Measured:
    same = asked = preempted = 0
    for name, options in FAMILIES.items():
        with _saved(ModelConfig(name, **(SIZES | options))) as folder:
            jobs = _jobs(random.Random(name))
            limits = EngineConfig(kv_bytes=1 << 19, max_num_seqs=12, token_budget=32, block_size=4)
            expected = _tokens(load(folder, limits).engine, jobs)
            config = EngineConfig(
                kv_bytes=40 * 4 * 2 * 8 * 4 * _heads_and_layers(read_config(folder), tp, pp),
                max_num_seqs=12, token_budget=32, block_size=4, tp=tp, pp=pp,
            )  # fmt: skip
            engine = load(folder, config, start=fork_ranks).engine
            try:
                found = _tokens(engine, jobs)
                preempted += engine.stats().num_preemptions
            finally:
                engine.close()
            asked += len(jobs)
            same += sum(found[job.request_id] == expected[job.request_id] for job in jobs)
    return Measured(f"{same} of {asked}, {preempted} preemptions", same == asked and preempted > 0)


def _heads_and_layers(model: ModelConfig, tp: int, pp: int) -> int:
    """Of the fullest rank: heads it holds keys of, times layers."""
    return max(1, model.num_kv_heads // tp) * (model.num_layers // pp)


def _simulated(seq_len: int, stages: int) -> Measured:
    found = makespans(seq_len, stages)
    greedy, best, uniform, evened = (value / found.exact for value in found[1:])
    text = (
        f"{greedy:.2f} x from a first chunk of {FIRST:,}, {best:.3f} x from the best of all; "
        f"uniform {uniform:.2f} x at {FIRST:,}, {evened:.3f} x at its best (exact: "
        f"{found.exact:.2f} s)"
    )
    return Measured(text, min(found[1:]) >= found.exact * (1 - 1e-5))


def _real() -> Measured:
    """Costs measured here, cuts by them; runs of every cut timed, and the pipeline they make."""
    config = _wide()
    torch.set_num_threads(1)
    with _saved(config) as folder:
        stages = Stages(folder, Layout(pp=2).layers(config), PROMPT)
        cost = stages.cost(PROMPT, (1, 8, 32, 64, 128, 256, PROMPT))
        batch = prompt_batch(PROMPT)
        firsts = range(PROMPT // 8, PROMPT, 16)
        greedy = [greedy_equal_time(_runtime(cost), PROMPT, n, page=16) for n in firsts]
        price = cost.over(batch)
        cuts = {
            "exact": StepSlices(2, cost).bounds(batch),
            "whole": [0, PROMPT],
            "halves": [0, PROMPT // 2, PROMPT],
            "greedy": list(min(greedy, key=lambda b: _total(price, b))),
        }
        ends = {name: finish_s(stages.least(batch, cut, 5)) for name, cut in cuts.items()}
        walls = _walls(folder, cuts)
    text = ", ".join(
        f"{name} {ends[name] / ends['exact']:.2f} x ({walls[name] / walls['exact']:.2f})"
        for name in cuts
        if name != "exact"
    )
    text += f" of exact, {len(cuts['exact']) - 1} slices, {ends['exact'] * 1e3:.0f} ms"
    return Measured(text, ends["exact"] <= 1.05 * min(ends.values()))


def _wide() -> ModelConfig:
    """A decoder whose steps take their time."""
    sizes: dict[str, Any] = {
        **SIZES, "hidden_size": 256, "intermediate_size": 1024, "num_layers": 8, "head_dim": 64,
        "max_positions": PROMPT + 64,
    }  # fmt: skip
    return ModelConfig("llama", **sizes)


def _batches() -> Measured:
    """The same requests by an engine with one batch under way, whole or cut, and with two."""
    config = _wide()
    torch.set_num_threads(1)
    with _saved(config) as folder:
        held = NUM_REQUESTS * (PROMPT_LEN + OUTPUT_LEN + BLOCK)
        stages = Stages(folder, Layout(pp=2).layers(config), held)
        tokenizer = Tokenizer.from_folder(folder)
        cost = stages.cost(256, (1, 8, 32, 64, 128, 256))
        rates = {
            (depth, is_cut): timed_tokens_a_second(stages, tokenizer, depth, price, rounds=2)
            for depth in (1, 2)
            for is_cut, price in ((False, None), (True, cost))
        }
        one, two = wall_tokens_a_second(folder, (1, 2), rounds=3)
    whole = rates[2, False] / rates[1, False]
    cut = rates[2, True] / rates[1, True]
    text = (
        f"{whole:.2f} x of whole steps ({two / one:.2f}), {cut:.2f} x of cut ones; "
        f"{max(rates[2, False], rates[2, True]):.0f} tokens/s"
    )
    return Measured(text, whole >= 1.5 and cut > 1)


def _total(price: Any, bounds: Sequence[int]) -> float:
    at = np.array(bounds)
    return makespan_s(price(np.diff(at), at[:-1]).tolist(), 2)


def _walls(folder: Path, cuts: Mapping[str, list[int]]) -> dict[str, float]:
    """Seconds of a step on two forked ranks, the cuts in turn: medians of rounds."""
    settings = EngineConfig(kv_bytes=64 << 20, token_budget=PROMPT, max_num_seqs=4, pp=2)
    settings = dataclasses.replace(settings, pp_slices=1)  # nothing is measured at the start
    runner = ParallelRunner(folder, settings, start=fork_ranks, num_threads=1)
    engine = Engine(runner, detokenizers(Tokenizer.from_folder(folder)), settings)
    times: dict[str, list[float]] = {name: [] for name in cuts}
    try:
        for turn, (name, bounds) in itertools.product(range(8), cuts.items()):
            runner.slices = _Fixed(bounds)  # type: ignore[assignment]
            seconds = _prefill(engine, random.Random(f"{turn}{name}"))
            if turn:
                times[name].append(seconds)
    finally:
        engine.close()
    return {name: statistics.median(taken) for name, taken in times.items()}


class _Fixed:
    """Bounds given beforehand, for the step that has as many tokens."""

    def __init__(self, bounds: list[int]) -> None:
        self._bounds = bounds

    def bounds(self, batch: PlainBatch, *, alone: bool = True) -> list[int]:
        count = batch.num_tokens
        return self._bounds if count == self._bounds[-1] else [0, count]


def _runtime(cost: PieceCost):
    """Seconds of a prompt in one piece."""
    return lambda tokens: float(cost(tokens, tokens * (tokens + 1) / 2))


def _prefill(engine: Engine, rng: random.Random) -> float:
    prompt = [rng.randrange(1, 320) for _ in range(PROMPT)]
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.add(Job(f"p{rng.random()}", prompt, params))
    started = time.perf_counter()
    while engine.has_work():
        engine.step()
    return time.perf_counter() - started
