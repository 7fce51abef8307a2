"""Measure an area's figures and write the tables that show them.

python -m benches.figures --area sched            # measure and print
python -m benches.figures --area sched --write    # and update the README tables
python -m benches.figures --area plan --only Llama --only trace --write    # some rows; others stay
"""

import argparse
import importlib
import pkgutil
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

import benches.figures
from benches.figures._table import line, write_table
from benches.figures.row import Measured, Row

ROOT = Path(__file__).parents[2]
HELPERS = {"__main__", "row"}


def areas() -> list[str]:
    """Names of the areas that have figures."""
    found = (module.name for module in pkgutil.iter_modules(benches.figures.__path__))
    return sorted(name for name in found if name not in HELPERS and not name.startswith("_"))


def environment() -> str:
    """Device and versions in one line."""
    return f"{_device()}; Python {platform.python_version()}, torch {torch.__version__}"


def commit_and_date() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return f"{commit}, {time.strftime('%Y-%m-%d')}"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return name
    match = re.search(r"model name\s*:\s*(.+)", info)
    return f"{match.group(1) if match else name}, {torch.get_num_threads()} threads"


def measure(row: Row) -> tuple[Measured, str]:
    """Run one row; a measurement that raises is reported as short with its error."""
    try:
        measured = row.measure()
    except Exception as error:  # one broken row must not hide the others
        measured = Measured(f"{type(error).__name__}: {error}".splitlines()[0][:160], False)
    verdict = {True: "ok", False: "short", None: ""}[measured.ok]
    return measured, verdict


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benches.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--area", choices=areas(), action="append", help="default: all")
    parser.add_argument("--only", action="append", default=[], help="rows with this in their claim")
    parser.add_argument("--nightly", action="store_true", help="also the rows that take minutes")
    parser.add_argument("--write", action="store_true", help="update the README tables")
    options = parser.parse_args()
    short, at = 0, commit_and_date()
    for area in options.area or areas():
        print(f"== {area}: {environment()}; {at}", flush=True)
        rows = list(importlib.import_module(f"benches.figures.{area}").rows())
        lines: dict[str, str] = {}
        for row in rows:
            if options.only and not any(text in row.claim for text in options.only):
                continue
            if row.nightly and not options.nightly:
                print(f"   {row.claim}: left out, add --nightly", flush=True)
                continue
            measured, verdict = measure(row)
            short += verdict == "short"
            cells = (row.claim, row.target, measured.text, f"`{row.command}`", verdict, at)
            lines[row.claim] = line(*cells)
            print(f"   {row.claim}: {measured.text} (target {row.target}) {verdict}", flush=True)
        if options.write:
            for path in write_table(area, [row.claim for row in rows], lines, environment()):
                print(f"   wrote {path.relative_to(ROOT)}", flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
