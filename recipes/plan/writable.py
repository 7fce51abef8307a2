"""``check_writable``: a file that cannot be written is refused before the work for it is done."""

import os
from pathlib import Path

from blocks._checks import check


def check_writable(*paths: Path | None) -> None:
    """Folders of the files may be missing yet; None is no file.

    Raises:
        ValueError: a folder stands in a file's place, or nothing can be made where one is wanted.
    """
    for path in paths:
        if path is None:
            continue
        check(not path.is_dir(), "out", "a file to write", f"the folder {path}")
        folder = next(one for one in path.absolute().parents if one.exists())
        able = folder.is_dir() and os.access(folder, os.W_OK)
        check(able, "out", "a file in a folder that can be written", str(path))
