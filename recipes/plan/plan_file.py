"""Files that plans are kept in: JSON that says its format and version. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks._checks import check, fail


def write_plan(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write the file, a line for each entry, so that two can be compared."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def read_plan(path: str | Path, writer: str) -> Any:
    """What the file holds, whatever it is.

    Args:
        writer: of such files, for the message.

    Raises:
        ValueError: no file, or no JSON in it.
    """
    check(Path(path).is_file(), "plan", f"a file that {writer} wrote", str(path))
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise fail("plan", f"JSON in {path}", error) from error


def check_version(data: Any, format_name: str, version: int) -> None:
    """
    Raises:
        ValueError: data of another format, or of another version of it.
    """
    known = isinstance(data, Mapping) and data.get("format") == format_name
    found = data.get("format") if isinstance(data, Mapping) else data
    check(known, "format", repr(format_name), repr(found)[:60])
    got, hint = data.get("version"), "plan again, or use the release that wrote it"
    check(got == version, "version of the plan", version, got, hint)
