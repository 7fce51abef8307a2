"""Checkpoints that are either complete or not there.

A checkpoint is a folder: tensors as safetensors, state as JSON, and a manifest with the size and
sha256 of each file. It is written under a temporary name, every file is flushed to disk, the
manifest comes last, and one rename makes it visible; a crash at any moment leaves the older ones
untouched. Reading goes by the manifest alone: what does not match it is passed over with a warning
and the checkpoint before it is taken. Nothing is pickled.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from blocks._checks import fail

MANIFEST = "MANIFEST"
_NAME = re.compile(r"^step-(\d{8})$")


class CheckpointDamaged(ValueError):
    """A checkpoint does not match its manifest."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """step: optimizer steps done. tensors: by name. state: plain JSON data."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Disk(Protocol):
    """The few file operations a save makes, in the order it makes them."""

    def make_folder(self, folder: Path) -> None: ...
    def write(self, path: Path, data: bytes) -> None: ...
    def sync(self, path: Path) -> None: ...
    def rename(self, old: Path, new: Path) -> None: ...
    def remove(self, folder: Path) -> None: ...


class LocalDisk:
    """The operating system's files."""

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def sync(self, path: Path) -> None:
        """Flush a file or a folder's entries to the device."""
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


def save_checkpoint(
    root: Path, checkpoint: Checkpoint, *, keep: int = 3, disk: Disk | None = None
) -> Path:
    """Write a checkpoint under ``root`` and drop all but the newest ``keep``.

    Tensors are serialised in memory first, so one more copy of them must fit there.

    Returns:
        The checkpoint's folder, ``step-00001234``.

    Raises:
        ValueError: an intact checkpoint of this step is there (a damaged one is replaced).
        OSError: disk full or broken; older checkpoints are as they were.
    """
    disk = disk or LocalDisk()
    files = {
        "tensors.safetensors": safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        ),
        "state.json": json.dumps(checkpoint.state, indent=1).encode(),
    }
    final = root / f"step-{checkpoint.step:08d}"
    draft = root / f"draft-{checkpoint.step:08d}"
    if final.exists():
        _refuse_intact(final)
    for stale in root.glob("draft-*"):  # of a save that did not finish
        disk.remove(stale)
    disk.make_folder(draft)
    for name, data in {**files, MANIFEST: _manifest(checkpoint.step, files)}.items():
        disk.write(draft / name, data)
        disk.sync(draft / name)
    disk.sync(draft)
    if final.exists():
        disk.remove(final)
    disk.rename(draft, final)
    disk.sync(root)
    for old in list_checkpoints(root)[:-keep]:
        disk.remove(old)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint, checking every byte against its manifest.

    Raises:
        CheckpointDamaged: anything missing, cut or changed.
    """
    try:
        manifest = _read_manifest((folder / MANIFEST).read_bytes())
        data = {name: (folder / name).read_bytes() for name in manifest["files"]}
    except OSError as error:
        raise CheckpointDamaged(f"{folder}: {error}") from error
    for name, want in manifest["files"].items():
        got = {"bytes": len(data[name]), "sha256": hashlib.sha256(data[name]).hexdigest()}
        if got != want:
            raise CheckpointDamaged(f"{folder / name}: expected {want}, got {got}")
    tensors = safetensors.torch.load(data["tensors.safetensors"])
    return Checkpoint(manifest["step"], tensors, json.loads(data["state.json"]))


def load_latest(root: Path) -> Checkpoint | None:
    """The newest intact checkpoint under ``root``; None where there is none.

    Damaged ones are left on disk and named in a warning.
    """
    for folder in reversed(list_checkpoints(root)):
        try:
            return load_checkpoint(folder)
        except CheckpointDamaged as error:
            warnings.warn(f"checkpoint passed over: {error}", RuntimeWarning, stacklevel=2)
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Folders of finished saves, oldest first; unfinished drafts are not among them."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NAME.match(path.name))


def _refuse_intact(folder: Path) -> None:
    try:
        load_checkpoint(folder)
    except CheckpointDamaged:
        return
    raise fail("checkpoint", "a step not saved yet", str(folder), "resume from it or remove it")


def _manifest(step: int, files: dict[str, bytes]) -> bytes:
    """A line with the sha256 of the rest, then the rest as JSON."""
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    body = json.dumps({"step": step, "files": entries}, indent=1).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read_manifest(data: bytes) -> dict[str, Any]:
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CheckpointDamaged("manifest does not match its own digest")
    return json.loads(body)
