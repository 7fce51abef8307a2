"""Files of a model folder: found without leaving it, read with a limit, parsed or refused."""

import json
import stat
from pathlib import Path
from typing import Any

from blocks._checks import fail

MAX_JSON_BYTES = 64 << 20


def open_folder(folder: str | Path) -> Path:
    """The folder as a path.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise fail("model folder", "a folder with config.json", str(folder), "check the path")
    return path


def find(folder: Path, name: str) -> Path | None:
    """Path of a file of the folder, or None where there is none.

    ``name`` may come from a file somebody else wrote, so it must be a plain name, and a link must
    not lead out of the folder; the store of a Hugging Face cache, whose snapshots are links, is
    the one exception.

    Raises:
        ValueError: a name with a path in it, a link that leads out, or not a regular file.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise fail("file name", "a plain name inside the model folder", repr(name)[:80])
    path = folder / name
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise fail(name, "a file", f"a link to nothing ({path.readlink()})") from None
        return None
    if not stat.S_ISREG(mode):
        raise fail(name, "a regular file", "a folder, pipe or device")
    if path.is_symlink() and not _stays(folder.resolve(), path.resolve()):
        raise fail(name, "a file inside the model folder", f"a link to {path.resolve()}")
    return path


def _stays(folder: Path, target: Path) -> bool:
    homes = [folder]
    if folder.parent.name == "snapshots":  # models--owner--name/{snapshots/REVISION,blobs}
        homes.append(folder.parent.parent / "blobs")
    return any(target.is_relative_to(home) for home in homes)


def require(folder: Path, name: str, hint: str) -> Path:
    """Path of a file that must be there.

    Raises:
        ValueError: it is not, with the hint.
    """
    path = find(folder, name)
    if path is None:
        raise fail(f"model folder {folder}", f"a file {name}", "none", hint)
    return path


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """A small UTF-8 text file.

    Raises:
        ValueError: too long, or not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise fail(path.name, f"at most {max_bytes} bytes", "more")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise fail(path.name, "UTF-8 text", f"bytes that are not ({error})") from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: not JSON, or not an object at the top.
    """
    return parse_object(read_text(path, max_bytes), path.name)


def parse_object(text: str, name: str) -> dict[str, Any]:
    """``text`` as a JSON object; ``name`` is the file it came from."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fail(name, "JSON", f"text that is not ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise fail(name, "a JSON object", type(value).__name__)
    return value


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as transformers does: indented, keys sorted, a line end."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
