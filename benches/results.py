"""Saved measurements: reading them, whichever command wrote them, and finding them by commit.

Two kinds of file are read: what ``pytest benches --benchmark-json`` (or ``--benchmark-autosave``)
writes, and the dated file of ``make gpu``, which holds its benches and its matrix rows together.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "benches" / "results", ROOT / ".benchmarks")
"""Where saved measurements lie."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measured call.

    name: of the bench or matrix row, with its parameters.
    median_s, p10_s, p90_s: seconds; of the kernels alone where they were timed, else of the call.
    info: what was recorded beside the time: FLOPs, bytes, rates, peaks, peers, environment.
    """

    name: str
    median_s: float
    p10_s: float
    p90_s: float
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """One file: where and with what it was measured, and the entries by name."""

    environment: dict[str, str]
    entries: dict[str, Entry]

    @property
    def title(self) -> str:
        """Commit, device and date in a few words."""
        return ", ".join(
            self.environment[key] for key in ("commit", "device", "date") if key in self.environment
        )


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        ValueError: a file of another kind.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected benchmark results, got no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected benchmark results, got a {type(found).__name__}")
    if "parts" in found:
        parts = found["parts"]
        rows = {f"matrix::{k}": v for k, v in parts.get("matrix", {}).items() if v.get("times")}
        benches = parts.get("benches", {})
        entries = [_entry(name, item) for name, item in {**benches, **rows}.items()]
        return Results(found["environment"], {entry.name: entry for entry in entries})
    if "benchmarks" in found:
        entries = [_from_pytest(item) for item in found["benchmarks"]]
        info = entries[0].info if entries else {}
        keys = ("device", "driver", "python", "torch", "triton", "commit", "date")
        environment = {key: str(info[key]) for key in keys if key in info}
        return Results(environment, {entry.name: entry for entry in entries})
    raise ValueError(f"{path}: expected benchmark results, got keys {sorted(found)[:8]}")


def find(what: str) -> Path:
    """A file by its path, or the newest saved file of a commit.

    Raises:
        ValueError: no such file, and no saved results of such a commit.
    """
    if Path(what).is_file():
        return Path(what)
    saved = [path for folder in FOLDERS for path in folder.rglob("*.json")]
    for path in sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            commit = load(path).environment.get("commit", "")
        except ValueError:
            continue
        if len(what) >= 6 and commit.startswith(what):
            return path
    raise ValueError(
        f"expected a results file or a commit with saved results, got {what!r}; save some with "
        "`python -m pytest benches --benchmark-enable --benchmark-autosave` at that commit"
    )


def bench_items(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of a pytest-benchmark file as the dated file keeps them."""
    return {
        entry.name: {key: v for key, v in dataclasses.asdict(entry).items() if key != "name"}
        for entry in map(_from_pytest, found["benchmarks"])
    }


def _entry(name: str, item: dict[str, Any]) -> Entry:
    timing = item["times"]["ours"] if "times" in item else item
    best = timing.get("kernel") or timing.get("wall") or timing
    return Entry(name, best["median_s"], best["p10_s"], best["p90_s"], item.get("info", {}))


def _from_pytest(item: dict[str, Any]) -> Entry:
    info, stats = item.get("extra_info", {}), item["stats"]
    ours = info.get("timings", {}).get("ours", {})
    best = ours.get("kernel") or {
        "median_s": stats["median"],
        "p10_s": info.get("p10_s", stats["q1"]),
        "p90_s": info.get("p90_s", stats["q3"]),
    }
    name = item["fullname"].removeprefix("benches/").removeprefix("bench_").replace(".py", "")
    return Entry(name, best["median_s"], best["p10_s"], best["p90_s"], info)
