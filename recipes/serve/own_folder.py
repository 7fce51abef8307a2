"""``OwnFolder``: a temporary folder that goes with its owner, however that ends."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile

PREFIX = "blocks-"
"""How the names of all such folders begin."""
OWNER = "blocks-owner"
"""A file in it that is locked for as long as the owner lives."""


class OwnFolder:
    """A folder of this user alone, removed by ``remove``, or by ``sweep`` once its owners are gone.

    Owners are this process, its forks, and processes that inherit ``lock``. The system gives the
    lock back when the last of them has ended, killed or not, so that nobody need ask for process
    numbers, which are used again and mean nothing in another container.

    Args:
        what: it is for; part of its name.
        parent: where it is made; None for where temporary files go.

    path: of the folder. lock: file descriptor that holds the lock; -1 once it was removed.
    """

    def __init__(self, what: str, parent: str | None = None) -> None:
        while True:
            self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{what}-", dir=parent)
            self.lock = _open(self.path, os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody who sweeps was quicker, and removes it
                self.remove()
                continue
            except OSError:  # a file system without locks: then nobody can sweep it either
                return
            if os.path.exists(os.path.join(self.path, OWNER)):  # not swept in between
                return
            self.remove()

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """With all that is in it; twice too."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def sweep(parent: str | None = None) -> list[str]:
    """Remove what owners have left that were killed: folders of this user with such a name, in
    which the owner's file is there and locked by nobody. Returns their paths.
    """
    removed = []
    with os.scandir(parent or tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _is_left(entry.path):
                removed.append(entry.path)
    return removed


def _is_left(path: str) -> bool:
    """Whether nobody owned the folder, which then is gone."""
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        lock = _open(path, 0)
    except OSError:  # no such folder of ours, or one that is just being made
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(path):
            if name != OWNER:  # which goes last: who is killed at this leaves a folder to be swept
                _remove(os.path.join(path, name))
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _open(path: str, flags: int) -> int:
    return os.open(os.path.join(path, OWNER), os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
