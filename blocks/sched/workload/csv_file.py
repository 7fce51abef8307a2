"""``open_csv``: a trace to read."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from blocks._checks import fail


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[TextIO]:
    """The file, to be read inside.

    Raises:
        ValueError: it is no CSV in UTF-8.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            yield file
        except (csv.Error, UnicodeDecodeError) as error:
            raise fail(path.name, "CSV in UTF-8", error) from error
