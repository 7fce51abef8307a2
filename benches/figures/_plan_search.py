"""Figures of the search for plans: how long it takes, what it holds, how large the files are."""

import contextlib
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benches.figures.row import Measured, Row
from recipes.plan.parallel_plan import ParallelPlan

ROOT = Path(__file__).parents[2]
LLAMA_8B = ("llama:8b", "--cluster", "8xH100", "num_nodes=8", "batch_size=256", "seq_len=2048")
LLAMA_70B = ("llama:70b", "--cluster", "8xH100", "num_nodes=64", "batch_size=1024", "seq_len=4096")
DEEP = (
    *("benches.figures._plan_search:deep", "--cluster", "8xH100", "num_nodes=8"),
    *("batch_size=256", "max_stages=64"),
)
HALF_70B = (*LLAMA_70B, "memory_gib=40")
SLOW_NETWORK = (
    *("gpt2:15b", "--cluster", "p3.16xlarge", "num_nodes=8", "batch_size=1024", "seq_len=1024"),
    "dtype=float16",
)
"""Alpa's largest GPT with a tied head. What crosses nodes takes a fifth of a stage's time, and the
bound takes neighbours to share a node: it tells little there, so there is no target."""
SMALL = (
    *("gpt2:tiny", "--cluster", "8xA100", "num_devices=4"),
    *("batch_size=16", "dtype=float32", "microbatch_choices=3"),
)

EVERY_S = 0.25
"""Between looks at what the processes hold."""


class Planned(NamedTuple):
    """A plan, the seconds it took with import and trace, and the most that the planner's processes
    held together, shared pages once."""

    plan: ParallelPlan
    seconds: float
    peak_bytes: int
    file_bytes: int


def rows() -> Iterator[Row]:
    for name, request, target, most, nightly in (
        ("gpt2:tiny on 4 devices", SMALL, 30, 1e-2, False),
        ("Llama 8B on 8 x 8 devices", LLAMA_8B, 60, 1e-2, True),
        ("Llama 70B on 64 x 8 devices", LLAMA_70B, 180, 1e-2, True),
        ("Llama 70B on 64 x 8 devices with 40 GiB", HALF_70B, 180, 1e-2, True),
        ("1,024 layers on 8 x 8 devices", DEEP, 120, 1e-2, True),
        ("GPT-2 15B on 8 x 8 V100, 25 Gb/s a node", SLOW_NETWORK, 120, None, True),
    ):
        command = f"python -m recipes.plan {' '.join(request)}"
        yield Row(
            f"time to plan {name}, imports and trace included, and the planner's memory",
            f"<= {target} s, <= 4 GB",
            command,
            functools.partial(_time, request, target),
            nightly,
        )
        yield Row(
            f"size of the plan of {name}, and its predicted step (simulated) above the bound on "
            "plans cut at any layer, by the costs of all strategies looked at",
            "< 200 kB" + ("" if most is None else f", 0 to {most:.0%}"),
            command,
            functools.partial(_size, request, most),
            nightly,
        )


def deep(rows: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A Llama of 1,024 layers, on the meta device."""
    import torch

    from recipes.plan.families.hugging_face import LLAMA, model

    fields = {**LLAMA["8b"], "hidden_size": 1024, "intermediate_size": 4096}
    make = model(
        "LlamaForCausalLM",
        **{**fields, "num_attention_heads": 16, "num_hidden_layers": 1024, "vocab_size": 32000},
    )
    tokens = torch.empty(rows, 1024, dtype=torch.int64, device="meta")
    return lambda: make().to(torch.bfloat16), (), {"input_ids": tokens, "labels": tokens}


@functools.cache
def _planned(request: tuple[str, ...]) -> Planned:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        with (Path(folder) / "said").open("w+") as said:
            start = time.perf_counter()
            command = [sys.executable, "-m", "recipes.plan", *request, "--out", str(out)]
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT)
            peak = 0
            while process.poll() is None:
                peak = max(peak, sum(map(_held_bytes, _family(process.pid))))
                time.sleep(EVERY_S)
            seconds = time.perf_counter() - start
            if process.returncode:
                said.seek(0)
                raise RuntimeError(said.read())
        return Planned(ParallelPlan.read(out), seconds, peak, out.stat().st_size)


def _family(pid: int) -> list[int]:
    """A process, its children, theirs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # gone meanwhile
            found += [one for child in task.read_text().split() for one in _family(int(child))]
    return found


def _held_bytes(pid: int) -> int:
    """Its proportional share of memory: a page that n processes share counts as 1/n."""
    with contextlib.suppress(OSError):  # gone meanwhile
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _time(request: tuple[str, ...], target: float) -> Measured:
    found = _planned(request)
    text = f"{found.seconds:.0f} s, {found.peak_bytes / 1e9:.1f} GB"
    return Measured(text, found.seconds <= target and found.peak_bytes <= 4e9)


def _size(request: tuple[str, ...], most: float | None) -> Measured:
    found = _planned(request)
    predicted = found.plan.predicted
    step = f"step {predicted.step_s * 1e3:.0f} ms, {predicted.gap:+.2%} of its bound"
    near = most is None or 0 <= predicted.gap <= most
    good = found.file_bytes < 200_000 and near
    return Measured(f"{found.file_bytes / 1e3:.0f} kB; {step}", good)
