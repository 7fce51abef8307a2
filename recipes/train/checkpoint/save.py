"""Saving: ranks agree on a plan, each writes its file, rank 0 makes all of it visible."""

import dataclasses
import json
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from blocks._checks import check, fail
from recipes.model.write_tensors import Named, file_parts
from recipes.train.checkpoint.checkpoint import Checkpoint
from recipes.train.checkpoint.disk import Disk, LocalDisk
from recipes.train.checkpoint.index import INDEX, encode_index, make_index
from recipes.train.checkpoint.load import STATE, check_intact, list_checkpoints, step_of
from recipes.train.checkpoint.manifest import (
    MANIFEST,
    CheckpointDamaged,
    Digesting,
    FileDigest,
    Manifest,
)
from recipes.train.checkpoint.plan import (
    Planner,
    file_of,
    global_plan,
    local_plan,
    pieces_to_write,
)
from recipes.train.checkpoint.ranks import OneRank, Ranks, agree, attempt

Pieces = list[tuple[MetadataIndex, Named]]


@dataclasses.dataclass(frozen=True)
class Draft:
    """A save that is planned and not written.

    step: of the checkpoint. state: of this rank. folder: where it is written, not yet visible.
    final: where it will be. pieces: what this rank writes; replace it to write copies.
    metadata: of the whole, on every rank.
    """

    step: int
    state: bytes
    folder: Path
    final: Path
    pieces: Pieces
    metadata: Metadata


def save_checkpoint(
    root: Path,
    checkpoint: Checkpoint,
    *,
    keep: int = 3,
    ranks: Ranks | None = None,
    disk: Disk | None = None,
) -> Path:
    """Write a checkpoint under ``root`` and drop all but the newest ``keep`` up to its step.

    Every rank calls it with its part. Tensors are written as they are, one at a time; they must
    not change meanwhile (``CheckpointWriter`` writes a copy beside the run).

    Returns:
        The checkpoint's folder, ``step-00001234``.

    Raises:
        ValueError: an intact checkpoint of this step is there (a damaged one is replaced), or the
            ranks' parts do not fit together.
        CheckpointFailed: disk full or broken, on any rank; older checkpoints are as they were.
    """
    ranks, disk = ranks or OneRank(), disk or LocalDisk()
    draft = begin(root, checkpoint, ranks, disk)
    return finish(draft, keep, ranks, disk)


def begin(root: Path, checkpoint: Checkpoint, ranks: Ranks, disk: Disk) -> Draft:
    """Agree on who writes what and make the folder to write to."""
    step = checkpoint.step
    final = root / f"step-{step:08d}"
    planner = attempt(lambda: Planner(checkpoint))

    def plan_mine() -> tuple[int, SavePlan]:
        if isinstance(planner, Exception):
            raise planner
        return step, local_plan(planner)

    def decide(parts: list[tuple[int, SavePlan]]) -> tuple[Path, list[SavePlan], Metadata]:
        assert isinstance(planner, Planner), planner
        steps = [part[0] for part in parts]
        check(len(set(steps)) == 1, "checkpoint step", "the same on every rank", steps)
        plans, metadata = global_plan(planner, [part[1] for part in parts])
        if final.exists():
            _refuse_intact(final)
        for stale in root.glob("draft-*"):  # of a save that did not finish
            disk.remove(stale)
        folder, is_new = root / f"draft-{step:08d}", not root.exists()
        disk.make_folder(folder)
        if is_new:
            disk.sync(root.parent)
        return folder, plans, metadata

    folder, plans, metadata = agree(ranks, _what(step), attempt(plan_mine), decide)
    assert isinstance(planner, Planner), planner
    pieces = pieces_to_write(planner, plans[ranks.rank])
    state = json.dumps(checkpoint.state, indent=1).encode()
    return Draft(step, state, folder, final, pieces, metadata)


def finish(draft: Draft, keep: int, ranks: Ranks, disk: Disk) -> Path:
    """Write what was planned and make it visible, or leave everything as it was."""

    def write_mine() -> tuple[FileDigest | None, list[MetadataIndex]]:
        if not draft.pieces:
            return None, []
        path = draft.folder / file_of(ranks.rank)
        digest = _write(disk, path, [named for _, named in draft.pieces])
        return digest, [index for index, _ in draft.pieces]

    def publish(parts: list[tuple[FileDigest | None, list[MetadataIndex]]]) -> None:
        files = {file_of(rank): digest for rank, (digest, _) in enumerate(parts) if digest}
        holders = {index: file_of(rank) for rank, part in enumerate(parts) for index in part[1]}
        index = encode_index(make_index(draft.metadata, holders))
        for name, data in {INDEX: index, STATE: draft.state}.items():
            files[name] = _write_bytes(disk, draft.folder / name, data)
        _write_bytes(disk, draft.folder / MANIFEST, Manifest(draft.step, files).encode())
        disk.sync(draft.folder)
        if draft.final.exists():  # damaged, or it would have been refused
            disk.remove(draft.final)
        disk.rename(draft.folder, draft.final)
        disk.sync(draft.final.parent)

    try:
        agree(ranks, _what(draft.step), attempt(write_mine), publish)
    except Exception:
        if ranks.rank == 0:
            disk.remove(draft.folder)  # give the room back
        raise
    if ranks.rank == 0:
        _retain(draft.final, keep, disk)
    return draft.final


def _write(disk: Disk, path: Path, tensors: list[Named]) -> FileDigest:
    parts = Digesting(file_parts(tensors))
    disk.write(path, parts)
    disk.sync(path)
    return parts.digest


def _write_bytes(disk: Disk, path: Path, data: bytes) -> FileDigest:
    parts = Digesting([data])
    disk.write(path, parts)
    disk.sync(path)
    return parts.digest


def _retain(newest: Path, keep: int, disk: Disk) -> None:
    """Drop old checkpoints. One of a later step is damaged or it would have been resumed from:
    it must not push out an intact one."""
    until = [path for path in list_checkpoints(newest.parent) if step_of(path) <= step_of(newest)]
    for old in until[:-keep]:
        disk.remove(old)


def _refuse_intact(folder: Path) -> None:
    try:
        check_intact(folder)
    except CheckpointDamaged:
        return
    raise fail("checkpoint", "a step not saved yet", str(folder), "resume from it or remove it")


def _what(step: int) -> str:
    return f"checkpoint of step {step} not written"
