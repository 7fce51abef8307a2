"""The manifest of a checkpoint: which files belong to it, their sizes and digests.

It is the last file written and the first one read. Its first line is the sha256 of the rest, so
no byte of a checkpoint can change unseen.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from blocks._checks import check

MANIFEST = "MANIFEST"
FORMAT = 2
_READ_BYTES = 1 << 20


class CheckpointDamaged(ValueError):
    """A checkpoint does not match its manifest."""


class FileDigest(NamedTuple):
    """Size and sha256 of a file, the latter in hexadecimal."""

    num_bytes: int
    sha256: str


class Manifest(NamedTuple):
    """step: optimizer steps done. files: by name."""

    step: int
    files: dict[str, FileDigest]

    def encode(self) -> bytes:
        files = {name: digest._asdict() for name, digest in sorted(self.files.items())}
        body = json.dumps({"format": FORMAT, "step": self.step, "files": files}, indent=1).encode()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def decode(cls, data: bytes) -> "Manifest":
        """
        Raises:
            CheckpointDamaged: not what ``encode`` wrote.
            ValueError: whole, but of another format.
        """
        digest, _, body = data.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise CheckpointDamaged("the manifest does not match its own digest")
        content = json.loads(body)
        found = content.get("format")
        check(found == FORMAT, "checkpoint format", FORMAT, found, "written by another version")
        files = {name: FileDigest(**digest) for name, digest in content["files"].items()}
        return cls(content["step"], files)


class Digesting:
    """Passes buffers on and knows their size and digest at the end."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts = parts
        self._hash = hashlib.sha256()
        self._num_bytes = 0

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            self._hash.update(part)
            self._num_bytes += memoryview(part).nbytes
            yield part

    @property
    def digest(self) -> FileDigest:
        return FileDigest(self._num_bytes, self._hash.hexdigest())


def digest_of(path: Path) -> FileDigest:
    """Size and digest of a file on disk, read a piece at a time."""
    with path.open("rb") as file:
        found = Digesting(iter(lambda: file.read(_READ_BYTES), b""))
        for _ in found:
            pass
    return found.digest


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        CheckpointDamaged: not there, cut or changed.
        ValueError: whole, but of another format.
    """
    try:
        return Manifest.decode((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointDamaged(f"{folder}: {error}") from error
    except CheckpointDamaged as error:
        raise CheckpointDamaged(f"{folder}: {error}") from error


def check_files(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Read files of a checkpoint and compare every byte with the manifest.

    Raises:
        CheckpointDamaged: anything missing, cut or changed.
    """
    for name, want in files.items():
        try:
            got = digest_of(folder / name)
        except OSError as error:
            raise CheckpointDamaged(f"{folder}: {error}") from error
        if got != want:
            raise CheckpointDamaged(f"{folder / name}: expected {want}, got {got}")
