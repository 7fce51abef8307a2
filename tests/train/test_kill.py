"""kill -9 at random moments, going on under another layout every time: not a bit changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.train import read_log
from recipes.train.checkpoint import load_latest
from recipes.train.log import TIMINGS

SETTINGS = [
    *("num_steps=24", "checkpoint_every=5", "log_every=1", "eval_every=12", "eval_tokens=256"),
    *("max_corpus_bytes=60000", "vocab_size=320", "context_len=32", "batch_size=2"),
    *("lanes=2", "microbatch=1", "slices=2"),
]


def result(out: Path) -> tuple[list[dict], dict[str, bytes]]:
    """The log without its clocks; every bit of the last checkpoint and of the model."""
    entries = read_log(out / "log.jsonl")
    curve = [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in entries]
    last = load_latest(out / "checkpoints")
    assert last is not None
    bits = {
        name: t.flatten().view(torch.uint8).numpy().tobytes() for name, t in last.tensors.items()
    }
    bits["model.safetensors"] = (out / "model" / "model.safetensors").read_bytes()
    return curve, bits


def killed_run(folder: Path, seed: int, num_kills: int, settings: list[str]) -> int:
    """Kill and go on, compare with the unbroken run; how often a kill hit."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.train.killing"),
            *(str(folder), str(seed), str(num_kills), *SETTINGS, *settings),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    (curve, bits), (wanted_curve, wanted_bits) = map(result, (folder / "killed", folder / "whole"))
    assert curve == wanted_curve, report
    assert [name for name in wanted_bits if bits[name] != wanted_bits[name]] == [], report
    assert bits.keys() == wanted_bits.keys()
    return report["hits"]


def test_five_kills_under_changing_layouts_lose_nothing(tmp_path):
    assert killed_run(tmp_path / "run", 0, 5, []) == 5


def kill_many(folder: Path, num_kills: int) -> int:
    """Runs of either optimizer, tied and untied, killed five times each; how often it hit."""
    hits = run = 0
    while hits < num_kills:
        settings = [
            "optimizer=" + ("adamw", "muon")[run % 2],
            "tie_embeddings=" + ("true", "false")[run // 2 % 2],
        ]
        hits += killed_run(folder / str(run), 100 + run, 5, settings)
        run += 1
    return hits


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_fifty_kills_under_changing_layouts(tmp_path):
    assert kill_many(tmp_path, 50) >= 50
