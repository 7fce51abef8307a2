"""Rows of ``benches.figures.ops`` about losses and the optimizer, on one CPU thread each."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benches import machine
from benches.figures.row import Measured, Row
from benches.shapes import LLAMA_200M
from blocks import ops

COMMAND = "make figures AREA=ops"
CPU = torch.device("cpu")
NUM_ROWS, VOCAB_SIZE, HIDDEN_SIZE = 2048, 4096, 256
"""Of a step of the bundled model's training."""
LARGE = (2048, LLAMA_200M.vocab_size, LLAMA_200M.hidden_size)


def rows() -> Iterator[Row]:
    yield Row(
        f"`linear_cross_entropy`, both passes, {NUM_ROWS:,} rows, hidden {HIDDEN_SIZE}, vocabulary "
        f"{VOCAB_SIZE:,}, bf16, against full logits",
        ">= 1.5x",
        COMMAND,
        _linear_loss,
    )
    num_rows, vocab_size, hidden_size = LARGE
    yield Row(
        f"`linear_cross_entropy`, both passes, {num_rows:,} rows, hidden {hidden_size:,}, "
        f"vocabulary {vocab_size:,}, bf16: peak memory above inputs and gradients, of that with "
        "full logits",
        "<= 50 %",
        COMMAND,
        _memory,
    )
    yield Row(
        "`AdamW`, 160 fp32 tensors of 8 M parameters, against torch's fused one",
        ">= 0.9x",
        COMMAND,
        _adamw,
    )


def _inputs(num_rows: int, vocab_size: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, hidden_size, generator=generator).bfloat16()
    weight = (torch.randn(vocab_size, hidden_size, generator=generator) / 16).bfloat16()
    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def _losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "ours": lambda: ops.linear_cross_entropy(hidden, weight, labels),
        "full": lambda: F.cross_entropy((hidden @ weight.T).float(), labels),
    }


def _linear_loss() -> Measured:
    hidden, weight, labels = _inputs(NUM_ROWS, VOCAB_SIZE, HIDDEN_SIZE)
    losses = _losses(hidden, weight, labels)
    calls = {
        name: lambda loss=loss: torch.autograd.grad(loss(), (hidden, weight))
        for name, loss in losses.items()
    }
    found = machine.race(calls, CPU, rounds=9, cold=False)
    ratio = found["full"] / found["ours"]
    ms = {name: s * 1e3 for name, s in found.items()}
    text = f"{ratio:.2f}x ({ms['ours']:.0f} against {ms['full']:.0f} ms)"
    return Measured(text, ratio >= 1.5)


def _memory() -> Measured:
    found = {name: _apart(name) for name in ("ours", "full")}
    share = found["ours"] / found["full"]
    mib = {name: num_bytes / 2**20 for name, num_bytes in found.items()}
    text = f"{100 * share:.0f} % ({mib['ours']:.0f} against {mib['full']:.0f} MiB)"
    return Measured(text, share <= 0.5)


def _apart(name: str) -> int:
    command = [sys.executable, "-m", "benches.figures._ops_training", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _peak_bytes(name: str) -> int:
    """Of one call in this process, which did nothing else before but the same in small."""
    few = _losses(*_inputs(8, 64, 32))[name]
    few().backward()
    hidden, weight, labels = _inputs(*LARGE)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    before = _resident("VmRSS")
    _losses(hidden, weight, labels)[name]().backward()
    return max(1, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    (kibibytes,) = re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024


def _adamw() -> Measured:
    params = [nn.Parameter(torch.randn(256, 400)) for _ in range(80)]
    params += [nn.Parameter(torch.randn(256)) for _ in range(80)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizers = {
        "ours": ops.AdamW(params, 1e-3),
        "torch": torch.optim.AdamW(params, 1e-3, fused=True),
    }
    calls = {name: optimizer.step for name, optimizer in optimizers.items()}
    found = machine.race(calls, CPU, rounds=25, cold=False)
    ratio = found["torch"] / found["ours"]
    ms = {name: s * 1e3 for name, s in found.items()}
    text = f"{ratio:.2f}x ({ms['ours']:.2f} against {ms['torch']:.2f} ms)"
    return Measured(text, ratio >= 0.9)


if __name__ == "__main__":
    print(_peak_bytes(sys.argv[1]))
