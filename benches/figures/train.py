"""Figures of recipes.train and of the bundled model."""

import dataclasses
import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from benches.figures.row import Measured, Row
from benches.plain_trainer import BareLoop, PlainTrainer
from recipes.model import load_model
from recipes.model.bundled import bundled_model
from recipes.train import TrainConfig, bundled, chat, demo, load_corpus, train
from recipes.train.card import measure_held_out
from recipes.train.checkpoint import CheckpointWriter, load_latest
from recipes.train.prepare import prepare
from recipes.train.recall import measure_recall
from recipes.train.trainer import Trainer

COMMAND = "python -m benches.figures --area train"


def rows() -> Iterator[Row]:
    yield Row(
        "training step in bfloat16 over float32, bundled preset, eager, one thread",
        ">= 1.5x",
        COMMAND,
        _bf16_ratio,
    )
    yield Row(
        "step held up by a save in the background, bundled preset",
        "< 1 step",
        COMMAND,
        _stall,
    )
    yield Row(
        "the same checkpoint written in the background, and read back with every byte checked",
        "",
        COMMAND,
        _save_time,
    )
    yield Row(
        "step of the trainer over the bare loop of forward, backward, clip and update, demo preset",
        "<= 1.02x",
        COMMAND,
        _overhead,
    )
    yield Row(
        "tokens a second over plain PyTorch (SDPA, autocast, fused AdamW), same model, demo preset",
        ">= 1x",
        COMMAND,
        _against_plain,
    )
    yield Row(
        "kill -9 at a random moment, then on under another pipeline, replicas or FSDP",
        "same bits after 50",
        COMMAND + " --nightly",
        _kills,
        nightly=True,
    )
    yield Row(
        "checkpoint of 2 ranks cut, or a bit of it flipped, at every byte",
        "all found",
        COMMAND,
        _damage,
    )
    yield Row("bundled model, weights on disk", "<= 8,000,000 bytes", COMMAND, _size)
    yield Row(
        "bundled model, held-out files of this Python's library",
        "<= 1.85 bits/byte",
        COMMAND,
        _bits_per_byte,
    )
    yield Row("bundled model, exact answers on 100 builtins and common names", "", COMMAND, _recall)
    yield Row(
        "demo preset from scratch: loss and time",
        "loss -2.5 nats in <= 90 s",
        COMMAND + " --nightly",
        _demo,
        nightly=True,
    )
    yield Row(
        "bundled preset compiled over eager, one thread", "", COMMAND + " --nightly", _compile,
        nightly=True,
    )  # fmt: skip


def _seconds_per_step(variants: list[TrainConfig], num_rounds: int) -> list[list[float]]:
    """CPU seconds of training steps, the variants taking turns so that noise meets all alike."""
    data = prepare(dataclasses.replace(variants[0], max_corpus_bytes=400_000))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainers = [Trainer(config, data) for config in variants]
        for trainer in trainers:
            trainer.train_step()
        times: list[list[float]] = [[] for _ in trainers]
        for _ in range(num_rounds):
            for trainer, found in zip(trainers, times, strict=True):
                started = time.process_time()
                trainer.train_step()
                found.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return times


def _ratio(slow: TrainConfig, fast: TrainConfig, target: float | None) -> Measured:
    times = _seconds_per_step([slow, fast], num_rounds=7)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    ratio = statistics.median(ratios)
    rate = fast.tokens_per_step / statistics.median(times[1])
    text = f"{ratio:.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}); {rate:,.0f} tokens per CPU second"
    return Measured(text, None if target is None else ratio >= target)


def _bf16_ratio() -> Measured:
    base = dataclasses.replace(bundled(), compile=False, chat_share=0.0)
    return _ratio(dataclasses.replace(base, dtype="float32"), base, 1.5)


def _compile() -> Measured:
    base = dataclasses.replace(bundled(), chat_share=0.0)
    return _ratio(dataclasses.replace(base, compile=False), base, None)


class _Saves(NamedTuple):
    """Seconds, medians: a step, what a save holds it up, the save itself, reading it back."""

    step: float
    held_up: float
    saved: float
    read: float
    num_bytes: int


@functools.cache
def _time_saves() -> _Saves:
    """A run on one thread that saves after every step; the first save, which makes room for its
    copies, is left out of the medians."""
    config = dataclasses.replace(bundled(), compile=False, chat_share=0.0, max_corpus_bytes=400_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = Trainer(config, prepare(config))
        steps, held_up, saved, read = [], [], [], []
        with tempfile.TemporaryDirectory() as folder, CheckpointWriter(Path(folder)) as writer:
            for _ in range(6):
                started = time.perf_counter()
                trainer.train_step()
                steps.append(time.perf_counter() - started)
                started = time.perf_counter()
                writer.save(trainer.checkpoint())
                held_up.append(time.perf_counter() - started)
                writer.wait()
                saved.append(time.perf_counter() - started)
                started = time.perf_counter()
                found = load_latest(Path(folder))
                assert found is not None
                num_bytes = sum(t.numel() * t.element_size() for t in found.tensors.values())
                read.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    middle = [statistics.median(times[1:]) for times in (steps, held_up, saved, read)]
    return _Saves(middle[0], middle[1], middle[2], middle[3], num_bytes)


def _stall() -> Measured:
    found = _time_saves()
    share = found.held_up / found.step
    text = f"{found.held_up * 1e3:.0f} ms, {share:.2f} of a step of {found.step * 1e3:.0f} ms"
    return Measured(text, share < 1)


def _save_time() -> Measured:
    found = _time_saves()
    size = found.num_bytes / 1e6
    return Measured(
        f"{size:.0f} MB in {found.saved:.2f} s ({size / found.saved:,.0f} MB/s), "
        f"read in {found.read:.2f} s ({size / found.read:,.0f} MB/s)",
        None,
    )


def _turns(calls: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call, the calls taking turns in a new order every round."""
    threads, order = torch.get_num_threads(), random.Random(0)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        for round_ in range(num_rounds + 2):
            for name in order.sample(list(calls), len(calls)):
                started = time.process_time()
                calls[name]()
                if round_ >= 2:
                    times[name].append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return times


def _demo_trainer() -> Trainer:
    config = dataclasses.replace(demo(), max_corpus_bytes=400_000, optimizer="adamw")
    return Trainer(config, prepare(config))


def _overhead() -> Measured:
    """Both drive one model; its batch is made anew by both."""
    trainer = _demo_trainer()
    bare, batches = BareLoop(trainer), trainer.data.batches

    def bare_step() -> None:
        batch = batches.batch(trainer.step)
        bare.step(batch.inputs, batch.labels)

    times = _turns({"trainer": trainer.train_step, "bare": bare_step}, num_rounds=40)
    middle = {name: statistics.median(found) for name, found in times.items()}
    ratio = middle["trainer"] / middle["bare"]
    return Measured(f"{ratio:.3f}x of {1e3 * middle['bare']:.0f} CPU ms", ratio <= 1.02)


def _against_plain() -> Measured:
    trainer = _demo_trainer()
    plain = PlainTrainer(trainer.config, trainer.data.tokenizer.get_vocab_size())
    batches = trainer.data.batches

    def plain_step() -> None:
        batch = batches.batch(trainer.step)
        plain.step(batch.inputs, batch.labels)

    times = _turns({"trainer": trainer.train_step, "plain": plain_step}, num_rounds=15)
    ratios = sorted(p / t for p, t in zip(times["plain"], times["trainer"], strict=True))
    rate = trainer.config.tokens_per_step / statistics.median(times["trainer"])
    text = (
        f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}); "
        f"{rate:,.0f} tokens per CPU second"
    )
    return Measured(text, statistics.median(ratios) >= 1)


def _kills() -> Measured:
    from tests.train.test_kill import kill_many

    with tempfile.TemporaryDirectory() as folder:
        hits = kill_many(Path(folder), 50)  # raises at the first bit that differs
    return Measured(f"same log, weights and moments after {hits} kills", hits >= 50)


def _damage() -> Measured:
    from tests.train.checkpoint.test_load import damage_every_byte

    with tempfile.TemporaryDirectory() as folder:
        found = [damage_every_byte(Path(folder) / kind, kind) for kind in ("cut", "flip")]
    return Measured(f"{sum(found):,} of {sum(found):,}", True)  # raises at the first not found


def _size() -> Measured:
    num_bytes = (bundled_model() / "model.safetensors").stat().st_size
    return Measured(f"{num_bytes:,} bytes", num_bytes <= 8_000_000)


def _bits_per_byte() -> Measured:
    folder = bundled_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = measure_held_out(load_model(folder), tokenizer, load_corpus())
    text = f"{found.bits_per_byte:.3f} bits/byte ({found.loss:.3f} nats per token)"
    return Measured(text, found.bits_per_byte <= 1.85)


def _recall() -> Measured:
    folder = bundled_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = [pair for pair in load_corpus(with_pairs=True).pairs if chat.is_common(pair)]
    found = measure_recall(load_model(folder), tokenizer, pairs, num_asked=100)
    return Measured(f"{found.num_exact} of {found.num_asked}", None)


def _demo() -> Measured:
    with tempfile.TemporaryDirectory() as out:
        result = train(demo(), out=out)
    first, last = result.entries[0].loss, result.entries[-1].loss
    text = (
        f"{first:.2f} to {last:.2f} nats in {result.seconds:.0f} s, "
        f"{result.held_out.bits_per_byte:.2f} bits/byte held out"
    )
    return Measured(text, first - last >= 2.5 and result.seconds <= 90)
