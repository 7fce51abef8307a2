"""Figures of ``recipes.model``: its logits against transformers', its decode step against torch's.

The families are the tiny random models of ``tests.model.oracle``; each is run as one prefill, in
chunks through pages, and token by token through pages.
"""

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benches import machine
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M

COMMAND = "make figures AREA=model"
CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma2", "gpt2", "opt")


def rows() -> Iterator[Row]:
    """Worst logit error of every family, greedy tokens, decode steps, text streams, memory."""
    for family in FAMILIES:
        yield Row(
            f"{family}: largest fp32 logit difference from transformers (prefill, chunks, decode)",
            "< 1e-4",
            COMMAND,
            functools.partial(_logit_error, family),
        )
    yield Row(
        "greedy tokens equal to transformers', 64 of each model", "all", COMMAND, _greedy_tokens
    )
    for num_rows, target in ((1, 1.4), (8, 1.4), (32, 1.2)):
        yield Row(
            f"decode step of a 200M bf16 Llama, {num_rows} row(s), against bare eager torch",
            f">= {target}x",
            COMMAND,
            functools.partial(_decode_step, num_rows, target),
        )
    yield Row(
        "memory to read a folder, over the weights themselves", "< 48 MiB", COMMAND, _read_memory
    )
    yield Row("text of a streamed token, worst mean of four streams", "< 50 us", COMMAND, _stream)


def _cases(family: str) -> list[str]:
    from tests.model.oracle import CASES

    return [case for case in CASES if case.startswith(family)]


def _logit_error(family: str) -> Measured:
    from recipes.model import load_model
    from tests.model.oracle import hf_folder, hf_logits, hf_model
    from tests.model.test_families import greedy, prefill_logits, tokens_of

    worst, cases = 0.0, _cases(family)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            decoder = load_model(hf_folder(case, Path(scratch)))
            tokens = tokens_of()
            expected = hf_logits(hf_model(case), tokens)
            chosen, decoded = greedy(decoder, tokens[:13], 64)
            whole = hf_logits(hf_model(case), torch.cat((tokens[:13], torch.tensor(chosen))))
            for got, wanted in (
                (prefill_logits(decoder, tokens), expected),
                (_chunked(decoder, tokens), expected),
                (torch.cat(decoded), whole),
            ):
                worst = max(worst, float((got - wanted).abs().max()))
    return Measured(f"{worst:.1e} ({len(cases)} models)", worst < 1e-4)


def _chunked(decoder, tokens: torch.Tensor) -> torch.Tensor:
    from tests.model.paged import PagedRunner

    runner = PagedRunner(decoder, num_seqs=1, max_len=len(tokens))
    return torch.cat([runner.step([part])[0] for part in tokens.split(7)])


def _greedy_tokens() -> Measured:
    from recipes.model import load_model
    from tests.model.oracle import CASES, hf_folder, hf_logits, hf_model
    from tests.model.test_families import greedy, tokens_of

    same = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            prompt = tokens_of(13, seed=3)
            chosen, _ = greedy(load_model(hf_folder(case, Path(scratch))), prompt, 64)
            logits = hf_logits(hf_model(case), torch.cat((prompt, torch.tensor(chosen))))
            same += chosen == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    return Measured(f"{same} of {len(CASES)} models", same == len(CASES))


def _decode_step(num_rows: int, target: float) -> Measured:
    from benches.bench_model import check_steps_agree, make_decoder, step_work

    decoder = make_decoder(LLAMA_200M, CPU)
    ours, bare = check_steps_agree(decoder, num_rows)
    with torch.inference_mode():
        found = machine.race({"ours": ours, "bare": bare}, CPU, rounds=15, cold=False)
    ratio = found["bare"] / found["ours"]
    read = step_work(decoder, num_rows).bytes / found["ours"] / 1e9
    text = f"{ratio:.2f}x ({num_rows / found['ours']:.0f} tokens/s, {read:.1f} GB/s)"
    return Measured(text, ratio >= target)


def _read_memory() -> Measured:
    from benches.bench_model import make_decoder
    from recipes.model import save_model
    from tests.model.memory import peak_growth_of_loading

    with tempfile.TemporaryDirectory() as scratch:
        save_model(make_decoder(LLAMA_200M, CPU), scratch)
        size = (Path(scratch) / "model.safetensors").stat().st_size
        over = (peak_growth_of_loading(scratch) - size) / 2**20
    return Measured(f"{over:.0f} MiB over {size / 2**20:.0f} MiB", over < 48)


def _stream() -> Measured:
    from recipes.model.tokenizer import Tokenizer
    from tests.model.words import byte_fallback, byte_level

    texts = ("the quick brown fox 😀 " * 300, "\ufffd" * 600)
    worst = 0.0
    for make in (byte_level, byte_fallback):
        tokenizer = Tokenizer(make())
        for text in texts:
            ids = tokenizer.encode(text)
            detokenizer, start = tokenizer.detokenizer(), time.perf_counter()
            for token_id in ids:
                detokenizer.push(token_id)
            worst = max(worst, (time.perf_counter() - start) / len(ids) * 1e6)
    return Measured(f"{worst:.1f} us", worst < 50)
