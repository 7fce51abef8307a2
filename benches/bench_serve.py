"""What the engine adds around the model: schedule, tensors, draw, update, text, metrics."""

import time

import pytest
import torch

from benches.serve_workload import VOCAB, make_tokenizer
from recipes.model import Decoder, ModelConfig
from recipes.serve import Engine, EngineConfig, Job, SamplingParams
from recipes.serve.loading import detokenizers
from recipes.serve.memory import make_cache
from recipes.serve.runner import Runner

STEPS = 48


def idle_engine(running: int) -> Engine:
    """An engine whose model costs nothing: constant hidden states and a constant row of logits."""
    config = ModelConfig(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_positions=4096,
        eos_token_ids=(2,),
    )
    settings = EngineConfig(
        kv_bytes=128 << 20, max_num_seqs=running, token_budget=max(512, running)
    )
    decoder = Decoder(config)
    runner = Runner(decoder, make_cache(decoder, settings))
    engine = Engine(runner, detokenizers(make_tokenizer()), settings)
    hidden = torch.zeros(1, 8)
    scores = torch.zeros(running, 64)  # narrow, so that the argmax costs nothing either
    scores[:, 40] = 1.0

    def forward(batch):
        runner._manager.take_copies()
        return hidden, runner.tensors.build(batch)

    runner.forward = forward  # type: ignore
    runner.logits = lambda hidden, rows: scores[: rows.numel()]  # type: ignore
    return engine


def fill(engine: Engine, running: int) -> None:
    """Start ``running`` requests and bring all of them to decoding."""
    params = SamplingParams(temperature=0, max_tokens=4 * STEPS, ignore_eos=True)
    for index in range(running):
        engine.add(Job(f"r{index}", [5 + index] * 24, params))
    while engine.scheduler.num_waiting or any(
        sequence.num_computed < sequence.num_prompt
        for index in range(running)
        for sequence in engine.scheduler.sequences(f"r{index}")
    ):
        engine.step()


def host_microseconds(running: int) -> float:
    """Processor time of a step without the model, per running request [us]."""
    engine = idle_engine(running)
    fill(engine, running)
    started = time.process_time()
    for _ in range(STEPS):
        deltas = engine.step()
    spent = time.process_time() - started
    assert len(deltas) == running
    assert all(delta.token_ids == [40] and delta.text for delta in deltas)
    return spent / STEPS / running * 1e6


@pytest.mark.parametrize("running", [1, 64, 256])
def bench_step_without_model(benchmark, running):
    engine = idle_engine(running)
    fill(engine, running)
    rounds = 1 if benchmark.disabled else STEPS
    deltas = benchmark.pedantic(engine.step, rounds=rounds)
    assert len(deltas) == running
    assert all(delta.token_ids == [40] for delta in deltas)
    benchmark.extra_info["running"] = running
