"""The few file operations a save makes."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol


class Disk(Protocol):
    """Files and folders, as a save sees them."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it; it must not be there."""
        ...

    def write(self, path: Path, parts: Iterable[Any]) -> None:
        """Write a new file from objects that are buffers of bytes."""
        ...

    def sync(self, path: Path) -> None:
        """Flush a file, or the entries of a folder, to the device."""
        ...

    def rename(self, old: Path, new: Path) -> None: ...

    def remove(self, folder: Path) -> None:
        """Remove a folder and what is in it; what cannot be removed is left."""
        ...


class LocalDisk:
    """The operating system's files."""

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def write(self, path: Path, parts: Iterable[Any]) -> None:
        with path.open("wb") as file:
            for part in parts:
                file.write(part)

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
                raise
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
