"""Measure an area's figures and write the tables that show them.

python -m benches.figures --area sched            # measure and print
python -m benches.figures --area sched --write    # and update the README tables
"""

import argparse
import importlib
import pkgutil
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import benches.figures
from benches.figures.row import Measured, Row

ROOT = Path(__file__).parents[2]
HELPERS = {"__main__", "row"}


def areas() -> list[str]:
    """Names of the areas that have figures."""
    found = (module.name for module in pkgutil.iter_modules(benches.figures.__path__))
    return sorted(name for name in found if name not in HELPERS and not name.startswith("_"))


def environment() -> str:
    """Device, versions and commit in one line."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return (
        f"{_device()}; Python {platform.python_version()}, torch {torch.__version__}; "
        f"commit {commit}; {time.strftime('%Y-%m-%d')}"
    )


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


def write_table(area: str, lines: list[str], left_out: Sequence[str] = ()) -> list[Path]:
    """Put the table between the area's marks in every README that has them.

    Args:
        left_out: claims that were not measured this time; the rows they have there stay.
    """
    mark = re.compile(rf"(<!-- figures:{area} -->\n).*?(<!-- /figures:{area} -->)", re.DOTALL)
    written = []
    for path in sorted(ROOT.rglob("README.md")):
        if {".venv", ".venv-gpu", ".git", "node_modules"} & set(path.parts):
            continue
        text = path.read_text()
        if found := mark.search(text):
            old = found[0].splitlines()
            kept = [line for line in old if line.startswith(tuple(f"| {c} |" for c in left_out))]
            end = len(lines) - 2  # before the line that says what it was measured on
            table = "\n".join([*lines[:end], *kept, *lines[end:]]) + "\n"
            if kept:
                table += f"Measured earlier, with --nightly: the last {len(kept)}.\n"
            path.write_text(mark.sub(lambda m, t=table: m.group(1) + t + m.group(2), text))
            written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benches.figures", description="Measure an area's figures."
    )
    parser.add_argument("--area", choices=areas(), action="append", help="default: all")
    parser.add_argument("--nightly", action="store_true", help="also the rows that take minutes")
    parser.add_argument("--write", action="store_true", help="update the README tables")
    options = parser.parse_args()
    short = 0
    for area in options.area or areas():
        print(f"== {area}: {environment()}", flush=True)
        left_out: list[str] = []
        lines = ["| claim | target | measured | command | |", "|---|---|---|---|---|"]
        for row in importlib.import_module(f"benches.figures.{area}").rows():
            if row.nightly and not options.nightly:
                print(f"   {row.claim}: left out, add --nightly", flush=True)
                left_out.append(row.claim)
                continue
            measured, verdict = measure(row)
            short += verdict == "short"
            cells = (row.claim, row.target, measured.text, f"`{row.command}`", verdict)
            lines.append("| " + " | ".join(cells) + " |")
            print(f"   {row.claim}: {measured.text} (target {row.target}) {verdict}", flush=True)
        lines += ["", f"Measured on {environment()}."]
        if options.write:
            for path in write_table(area, lines, left_out):
                print(f"   wrote {path.relative_to(ROOT)}", flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
