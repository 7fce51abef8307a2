"""Loading: the newest checkpoint whose every byte is as written, into any layout."""

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks._checks import fail
from recipes.train.checkpoint.index import INDEX, StoredTensor, decode_index
from recipes.train.checkpoint.manifest import (
    CheckpointDamaged,
    Manifest,
    check_files,
    read_manifest,
)
from recipes.train.checkpoint.ranks import OneRank, Ranks, agree, attempt
from recipes.train.checkpoint.read import read_into

STATE = "state.json"
_NAME = re.compile(r"^step-(\d{8,})$")


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name; each is read, whole, when it is asked for."""

    def __init__(self, folder: Path, index: Mapping[str, StoredTensor]) -> None:
        self.folder, self.index = folder, index

    def __getitem__(self, name: str) -> Tensor:
        stored = self.index[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self.read_into({name: tensor})
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Read tensors in place: whole ones, or this rank's piece of a ``DTensor``.

        Only the pieces needed are read. No rank waits for another.

        Raises:
            ValueError: a name, shape or dtype that is not that of the checkpoint.
        """
        read_into(self.folder, self.index, targets)


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk, whole when it was opened.

    step: optimizer steps done. tensors: read on demand. state: plain JSON data.
    """

    folder: Path
    step: int
    tensors: StoredTensors
    state: dict[str, Any]


def load_checkpoint(folder: Path, *, ranks: Ranks | None = None) -> StoredCheckpoint:
    """Open one checkpoint, every byte of it compared with its manifest; the ranks share the work.

    Raises:
        CheckpointDamaged: anything missing, cut or changed, seen by any rank.
    """
    ranks = ranks or OneRank()
    damage = _agreed_damage(folder, ranks)
    if damage is not None:
        raise CheckpointDamaged(damage)
    return _open(folder)


def load_latest(root: Path, *, ranks: Ranks | None = None) -> StoredCheckpoint | None:
    """The newest intact checkpoint under ``root``, the same on every rank; None without one.

    Damaged ones are left on disk and named in a warning.

    Raises:
        ValueError: the ranks do not see the same folder, or a checkpoint of another format.
    """
    ranks = ranks or OneRank()
    for name in ranks.broadcast([path.name for path in reversed(list_checkpoints(root))]):
        damage = _agreed_damage(root / name, ranks)
        if damage is None:
            return _open(root / name)
        if ranks.rank == 0:
            text = f"checkpoint passed over: {damage}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    return None


def read_state(root: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint whose manifest and state are as written; None without.

    Looks at these two files only: for what is the same in all checkpoints of a run.

    Raises:
        ValueError: a checkpoint of another format.
    """
    for folder in reversed(list_checkpoints(root)):
        try:
            check_files(folder, {STATE: read_manifest(folder).files[STATE]})
        except CheckpointDamaged:
            continue
        return json.loads((folder / STATE).read_bytes())
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Folders of finished saves, oldest first; unfinished drafts are not among them."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.match(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def check_intact(folder: Path, rank: int = 0, num_ranks: int = 1) -> Manifest:
    """Compare a checkpoint with its manifest: all of it, or one rank's share of the files.

    Raises:
        CheckpointDamaged: anything missing, cut or changed.
        ValueError: whole, but of another format.
    """
    manifest = read_manifest(folder)
    names = sorted(manifest.files)[rank::num_ranks]
    check_files(folder, {name: manifest.files[name] for name in names})
    return manifest


def _agreed_damage(folder: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, None if nothing; the same answer on every rank."""

    def look() -> tuple[bool, str | None]:
        try:
            check_intact(folder, ranks.rank, ranks.num_ranks)
        except CheckpointDamaged as error:
            return folder.is_dir(), str(error)
        return True, None

    def decide(found: list[tuple[bool, str | None]]) -> str | None:
        blind = [rank for rank, (there, _) in enumerate(found) if not there]
        if blind and len(blind) < len(found):
            hint = "put the run's folder on a disk that all ranks share"
            raise fail("checkpoint", f"{folder} on every rank", f"none on ranks {blind}", hint)
        return next((damage for _, damage in found if damage is not None), None)

    return agree(ranks, f"{folder} not read", attempt(look), decide)


def _open(folder: Path) -> StoredCheckpoint:
    manifest = read_manifest(folder)
    index = decode_index((folder / INDEX).read_bytes())
    state = json.loads((folder / STATE).read_bytes())
    return StoredCheckpoint(folder, manifest.step, StoredTensors(folder, index), state)
