"""``read_events``: faults as a user writes them."""

import json
from pathlib import Path

from blocks._checks import check, fail
from blocks.sched.cluster_sim import Event

NEEDED = ("at_s", "kind", "group")


def read_events(path: Path) -> tuple[Event, ...]:
    """Read a JSON list of events, in order of time; fields as in ``Event``.

    Raises:
        ValueError: no such file, or an entry that is no event.
    """
    hint = 'write a list such as [{"at_s": 30, "kind": "down", "group": 0}]'
    check(path.is_file(), "events", "a JSON file", str(path), hint)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise fail(f"events {path.name}", "JSON", error, hint) from None
    check(isinstance(rows, list), f"events {path.name}", "a list", type(rows).__name__, hint)
    return tuple(sorted((_event(at, row) for at, row in enumerate(rows)), key=lambda e: e.at_s))


def _event(at: int, row: object) -> Event:
    what = f"event {at}"
    fields = Event._fields
    known = isinstance(row, dict) and set(NEEDED) <= set(row) <= set(fields)
    check(known, what, f"fields {NEEDED}, and of {fields} no others", repr(row)[:80])
    assert isinstance(row, dict)
    kinds = {"at_s": (int, float), "seconds": (int, float), "group": int, "kind": str, "model": str}
    for name, value in row.items():
        plain = isinstance(value, kinds[name]) and not isinstance(value, bool)
        check(plain, f"{what}.{name}", "a value of its kind", repr(value)[:80])
    return Event(**row)
