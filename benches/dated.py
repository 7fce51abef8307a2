"""The dated results file of an accelerator: one a day and device, added to part by part.

Every addition is written at once, so what a killed run had measured is kept, and a second run goes
on where the first stopped.
"""

import json
import re
from pathlib import Path
from typing import Any

from benches.results import ROOT

FOLDER = ROOT / "benches" / "results"
PARTS = ("tests", "benches", "matrix")
README = ROOT / "benches" / "README.md"


class Dated:
    """The file, read once and written after every change."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"environment": environment, "parts": {}}
        if path.exists():
            before = json.loads(path.read_text())
            if before["environment"]["commit"] == environment["commit"]:
                self.content["parts"] = before["parts"]

    def part(self, name: str) -> dict[str, Any]:
        """What a part holds so far, by name."""
        return self.content["parts"].setdefault(name, {})

    def put(self, part: str, name: str, item: dict[str, Any]) -> None:
        """Add or replace one item, and write the file."""
        self.part(part)[name] = item
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".writing")
        scratch.write_text(json.dumps(self.content, indent=1) + "\n")
        scratch.replace(self.path)


def open_file(environment: dict[str, str]) -> Dated:
    """This day's file of this device; results of another commit are not added to."""
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    return Dated(FOLDER / f"{environment['date']}-{device}.json", environment)


def newest() -> dict[str, Any] | None:
    """The content of the latest results file, if there is any."""
    saved = sorted(FOLDER.glob("*.json"))
    return json.loads(saved[-1].read_text()) if saved else None


def markdown(content: dict[str, Any] | None) -> list[str]:
    """Environment, tests and matrix of a results file; without one, every row as not measured."""
    from benches.matrix import rows, table

    if content is None:
        return [*table.lines(list(rows()), {}), "", "Nothing measured yet: `make gpu` does."]
    parts, where = content["parts"], content["environment"]
    lines = table.lines(list(rows()), _rows_of(parts))
    order = ("device", "driver", "torch", "triton", "commit", "date")
    lines += ["", "Measured on " + ", ".join(_named(key, where[key]) for key in order) + "."]
    tests = parts.get("tests", {})
    if tests:
        counts = {k: sum(t[k] for t in tests.values()) for k in ("passed", "failed", "skipped")}
        said = ", ".join(f"{n} {word}" for word, n in counts.items() if n or word == "passed")
        lines += ["", f"Tests on the device: {said}."]
    if parts.get("benches"):
        lines += ["", f"Benches: {len(parts['benches'])}, in the JSON file of the same date."]
    return lines


def _rows_of(parts: dict[str, Any]) -> dict[str, Any]:
    pending = {"status": "not measured", "reason": "not run yet"}
    from benches.matrix import rows

    return {row.id: parts.get("matrix", {}).get(row.id, pending) for row in rows()}


def _named(key: str, value: str) -> str:
    return value if key in ("device", "date") else f"{key} {value}"


def write_readme(path: Path = README) -> Path:
    """Put the newest table between the marks of the benches' README."""
    mark = re.compile(r"(<!-- results:gpu -->\n).*?(<!-- /results:gpu -->)", re.DOTALL)
    text = path.read_text()
    if not mark.search(text):
        raise ValueError(f"{path}: expected the marks <!-- results:gpu -->, found none")
    table = "\n".join(markdown(newest())) + "\n"
    path.write_text(mark.sub(lambda m: m.group(1) + table + m.group(2), text))
    return path
