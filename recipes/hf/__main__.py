"""A tiny random Llama trained twice, as it is and patched; then one step of a large vocabulary.

python -m recipes.hf                      # no network, no weights; half a minute on a CPU
python -m recipes.hf --vocab-size 32000   # a smaller one for the memory
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from blocks._checks import check_count
from blocks.ops import AdamW
from recipes.hf import patched  # says what to install where transformers is missing

NUM_STEPS = 30
NUM_TOKENS = 1024
"""Of the step whose memory is measured."""


def tiny_llama(vocab_size: int, hidden_size: int = 64) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=NUM_TOKENS,
        )
    ).train()


def losses(*, ours: bool) -> list[float]:
    """Of steps on one batch of random tokens, which the model learns by heart."""
    model = tiny_llama(vocab_size=512)
    tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    optimizer = AdamW(model.parameters(), lr=1e-2) if ours else _torch_adamw(model)
    found = []
    with patched(model) if ours else contextlib.nullcontext():
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


def _torch_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def step_bytes(vocab_size: int, *, ours: bool) -> int:
    """Memory that forward and backward of one long row add to what the model and its gradients
    take, at the peak; in this process, so measure each in one of its own."""
    model = tiny_llama(vocab_size, hidden_size=128)
    tokens = torch.arange(NUM_TOKENS)[None] % vocab_size
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with patched(model) if ours else contextlib.nullcontext():
        model(input_ids=tokens[:, :8], labels=tokens[:, :8]).loss.backward()  # what is lazy
        before = _resident("VmRSS")
        model(input_ids=tokens, labels=tokens).loss.backward()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    (kibibytes,) = re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024


def measured_apart(vocab_size: int, *, ours: bool) -> int:
    command = [sys.executable, "-m", "recipes.hf", "--vocab-size", str(vocab_size)]
    command += ["--memory-of", "patched" if ours else "plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _count(text: str) -> int:
    try:
        check_count("vocab_size", value := int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.hf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--vocab-size", type=_count, default=128_256, help="for the memory (default %(default)s)"
    )
    parser.add_argument("--memory-of", choices=("plain", "patched"), help=argparse.SUPPRESS)
    options: Any = parser.parse_args(arguments)
    if options.memory_of:
        print(step_bytes(options.vocab_size, ours=options.memory_of == "patched"))
        return 0
    plain, ours = losses(ours=False), losses(ours=True)
    print("step   transformers   patched   (tiny random Llama, one batch)")
    for step in (0, 1, 2, 4, 9, 19, NUM_STEPS - 1):
        print(f"{step + 1:4}   {plain[step]:12.6f}   {ours[step]:7.6f}")
    print(f"one step of {NUM_TOKENS:,} tokens, vocabulary {options.vocab_size:,}:")
    for name, flag in (("transformers", False), ("patched", True)):
        used = measured_apart(options.vocab_size, ours=flag)
        print(f"  {name:12} {used / 2**20:8,.0f} MiB above model and gradients at the peak")
    return 0


if __name__ == "__main__":
    sys.exit(main())
