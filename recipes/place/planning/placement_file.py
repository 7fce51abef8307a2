"""Placement files: a placement, and what the search that found it knows of it."""

import json
from pathlib import Path
from typing import Any

from blocks._checks import check, fail
from blocks.sched.place_search import PlacementPlan
from blocks.sched.placement import Placement

FORMAT, VERSION = "llm-blocks placement", 1


def write_placement(path: Path, plan: PlacementPlan) -> Path:
    """Write a plan, a line an entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "version": VERSION, "plan": plan.to_json()}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def read_plan(path: Path) -> PlacementPlan:
    """The plan of a file that ``write_placement`` wrote.

    Raises:
        ValueError: no such file, or another kind.
    """
    data = _read(path)
    known = isinstance(data, dict) and data.get("format") == FORMAT
    check(known, f"placement file {path}", f"format {FORMAT!r}", "another", "write it with plan")
    check(data.get("version") == VERSION, "version", VERSION, data.get("version"), "plan again")
    return PlacementPlan.from_json(data.get("plan") or {})


def read_placement(path: Path) -> Placement:
    """The placement of such a file, or of one that ``Placement.save`` wrote.

    Raises:
        ValueError: as ``read_plan``.
    """
    data = _read(path)
    if isinstance(data, dict) and "groups" in data:
        return Placement.from_json(data)
    return read_plan(path).placement


def _read(path: Path) -> Any:
    hint = "python -m recipes.place plan CONFIG --out FILE writes one"
    check(path.is_file(), "placement", "a placement file", str(path), hint)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise fail(f"placement file {path}", "JSON", error) from None
