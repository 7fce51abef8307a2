"""Small tasks whose best placement is known."""

import json
from pathlib import Path
from typing import Any

from blocks.sched.profile import (
    Decoder,
    Device,
    roofline_profile,
    save_profile,
    single_pass,
)

GB = 10**9
BURSTS = ((0.0, "a"), (0.0, "a"), (10.0, "b"), (10.0, "b"))
"""Two requests at once for one model, later two for the other."""


def two_models(folder: Path, *, slo_s: float = 1.6, **cluster: Any) -> Path:
    """A config of models that take 1 s alone, or half a second on each of two devices, and that
    fill a device; so two of them fit on two devices either way.

    Apart, the second request of each burst takes 2 s. Spread over both devices it takes 1.5 s.
    """
    source = "made up: half the time on each of two devices"
    stages = {(1, 1): [1.0], (1, 2): [0.5, 0.5]}
    save_profile(single_pass("m", "CPU", stages, 1 * GB, source), folder / "m.profile")
    rows = [f"{at_s},1,1,{model}" for at_s, model in BURSTS]
    head = "TIMESTAMP,ContextTokens,GeneratedTokens,Model"
    (folder / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    models = [{"name": name, "profile": "m.profile", "slo_s": slo_s} for name in "ab"]
    config = {
        "models": models,
        "cluster": {"num_devices": 2, "memory": "1GiB", **cluster},
        "traffic": {"trace": "log.csv", "trace_model": "Model"},
    }
    path = folder / "two.json"
    path.write_text(json.dumps(config))
    return path


def writers(folder: Path, **traffic: Any) -> Path:
    """Two models that generate, on two devices that hold both."""
    size = Decoder(1e9, 16, 2048, 2**16)
    device = Device("made up", 1e14, 1e12, 1e11, 1e-5, 1e-3)
    profile = roofline_profile("w", size, device, [(1, 1), (2, 1)])
    save_profile(profile, folder / "w.profile")
    models = [
        {"name": name, "profile": "w.profile", "ttft_s": 0.2, "tpot_s": 0.05}
        for name in ("write", "draft")
    ]
    config = {
        "models": models,
        "cluster": {"num_devices": 2, "memory": "8GiB"},
        "traffic": {"total_rate": 2, "duration_s": 2, "prompt_len": 8, "output_len": 2, **traffic},
    }
    path = folder / "writers.json"
    path.write_text(json.dumps(config))
    return path
