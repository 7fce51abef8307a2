"""A disk that fails at one operation, and forgets what was not flushed when power is cut."""

import errno
import random
from pathlib import Path

from recipes.train.checkpoint import LocalDisk


class Crash(BaseException):
    """The process is gone."""


class FaultyDisk(LocalDisk):
    """
    Args:
        fail_at: number of the operation that fails.
        fault: "crash" before the operation, "torn" after part of a write, "full" ENOSPC after part
            of a write, "error" EIO.
    """

    def __init__(self, fail_at: int, fault: str, choice: random.Random) -> None:
        self.fail_at, self.fault, self.choice = fail_at, fault, choice
        self.count = 0
        # What is not known to be on the device: contents, names in folders, renames.
        self.unsynced: set[Path] = set()
        self.unnamed: set[Path] = set()
        self.renamed: list[tuple[Path, Path]] = []
        self.places: dict[Path, Path] = {}  # where folders have gone

    def _reached(self) -> bool:
        self.count += 1
        return self.count - 1 == self.fail_at

    def _fail(self):
        if self.fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.fault == "error":
            raise OSError(errno.EIO, "Input/output error")
        raise Crash

    def make_folder(self, folder):
        if self._reached():
            self._fail()
        super().make_folder(folder)

    def write(self, path, parts):
        data = b"".join(bytes(part) for part in parts)
        if self._reached():
            if self.fault in ("torn", "full"):
                super().write(path, [data[: self.choice.randrange(len(data) + 1)]])
                self._written(path)
            self._fail()
        super().write(path, [data])
        self._written(path)

    def _written(self, path):
        self.unsynced.add(path)
        self.unnamed.add(path)

    def sync(self, path):
        if self._reached():
            self._fail()
        super().sync(path)
        self.unsynced.discard(path)
        self.unnamed = {file for file in self.unnamed if file.parent != path}
        self.renamed = [(old, new) for old, new in self.renamed if new.parent != path]

    def rename(self, old, new):
        if self._reached():
            self._fail()
        super().rename(old, new)
        self.renamed.append((old, new))
        self.places[old] = new

    def remove(self, folder):
        if self._reached():
            for path in sorted(folder.glob("*")):  # part of the files are gone
                if self.choice.random() < 0.5:
                    path.unlink()
            self._fail()
        super().remove(folder)

    def cut_power(self) -> None:
        """Lose, by chance, what was never flushed: files, tails of them, and renames."""
        for path in sorted(self.unsynced | self.unnamed):
            target = self.places.get(path.parent, path.parent) / path.name
            if not target.exists() or self.choice.random() < 0.3:
                continue
            if path in self.unnamed:
                target.unlink()
            else:
                data = target.read_bytes()
                target.write_bytes(data[: self.choice.randrange(len(data) + 1)])
        for old, new in reversed(self.renamed):
            if new.exists() and self.choice.random() < 0.5:
                new.rename(old)
