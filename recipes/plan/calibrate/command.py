"""``python -m recipes.plan calibrate``."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from blocks._checks import check_positive
from recipes.plan.calibrate.calibrate import calibrate
from recipes.plan.writable import check_writable


def main(argv: Sequence[str] | None = None) -> int:
    """Measure this machine and write its cluster file."""
    parser = argparse.ArgumentParser(
        "python -m recipes.plan calibrate",
        description="Measure this machine for a few minutes and write a cluster file of it: matrix "
        "multiplications and memory on one device, collectives among ranks.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the cluster file to write")
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        help="group sizes to measure collectives of (default: 2; all devices on accelerators)",
    )
    parser.add_argument(
        "--devices", type=int, help="ranks of the machine (default: the most ranks)"
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "float64", "bfloat16"], help="of products"
    )
    parser.add_argument("--seconds", type=float, default=0.2, help="for each size of each probe")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    options = parser.parse_args(argv)
    check_writable(options.out)
    check_positive("seconds", options.seconds)
    device_type = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    ranks = options.ranks or [2 if device_type == "cpu" else torch.cuda.device_count()]
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    cluster = calibrate(
        ranks,
        device_type=device_type,
        num_devices=options.devices,
        dtypes=options.dtypes,
        budget_s=options.seconds,
        on_progress=say,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cluster.save(options.out)
    say(f"wrote {options.out}: {cluster.name}, fingerprint {cluster.fingerprint()}")
    return 0
