"""Results files as the commands write them, with times chosen by the test."""

import json
from pathlib import Path

ENVIRONMENT = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "date": "2026-11-21"}


def save_pytest(path: Path, medians: dict[str, float], *, commit="abc1234", spread=0.01, **info):
    """As ``pytest benches --benchmark-json``; ``spread`` is a fraction of the median."""
    benchmarks = [
        {
            "fullname": f"benches/bench_ops.py::bench_{name}",
            "stats": {"median": m, "q1": m, "q3": m},
            "extra_info": {
                **ENVIRONMENT,
                "commit": commit,
                "p10_s": m * (1 - spread),
                "p90_s": m * (1 + spread),
                **info,
            },
        }
        for name, m in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def timing(median_s: float, spread: float = 0.01) -> dict[str, float]:
    return {
        "median_s": median_s,
        "p10_s": median_s * (1 - spread),
        "p90_s": median_s * (1 + spread),
        "rounds": 9,
    }
