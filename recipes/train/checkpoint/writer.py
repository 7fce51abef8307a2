"""Saving beside the run: the step goes on while a copy is written."""

import dataclasses
import threading
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from blocks._checks import check
from recipes.model.write_tensors import Named
from recipes.train.checkpoint.checkpoint import Checkpoint, CheckpointFailed
from recipes.train.checkpoint.disk import Disk, LocalDisk
from recipes.train.checkpoint.ranks import OneRank, Ranks
from recipes.train.checkpoint.save import Draft, Pieces, begin, finish


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, in the background.

    ``save`` returns when this rank's part is copied to host memory; a thread writes the copy. The
    copies are kept and used again, so a run holds its state twice on the host. Every rank calls
    the same methods in the same order. Use it as a context manager, or call ``close``.

    Invariants:
        1. At most one save is in flight.
        2. What is written is what the tensors held when ``save`` was called.
        3. A failure in the background is raised by the next ``save``, ``wait`` or ``close``, once.
        4. While one is in flight nothing else uses ``ranks``.

    Args:
        root: folder of the checkpoints.
        keep: how many are kept.
        ranks: those that save together; default this process alone.
        background: False writes within ``save``, without copies.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int = 3,
        ranks: Ranks | None = None,
        background: bool = True,
        disk: Disk | None = None,
    ) -> None:
        check(keep >= 1, "keep", "at least 1", keep)
        self._root, self._keep = root, keep
        self._ranks: Ranks = ranks or OneRank()
        self._disk: Disk = disk or LocalDisk()
        self._background = background
        self._copies: dict[MetadataIndex, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: CheckpointFailed | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._thread is not None:
            self._thread.join()  # the error under way matters more than one of the save

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to save; waits for the save before it.

        Raises:
            ValueError: as ``save_checkpoint``, on every rank.
            CheckpointFailed: this save cannot begin, or the one before it failed.
        """
        self.wait()
        draft = begin(self._root, checkpoint, self._ranks, self._disk)
        if not self._background:
            finish(draft, self._keep, self._ranks, self._disk)
            return
        draft = dataclasses.replace(draft, pieces=self._copy(draft.pieces))
        self._thread = threading.Thread(
            target=self._finish, args=(draft,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is in flight.

        Raises:
            CheckpointFailed: what was in flight failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """As ``wait``, and give the copies' memory back."""
        self._copies.clear()
        self.wait()

    def check_invariants(self) -> None:
        alive = [t for t in threading.enumerate() if t.name == "checkpoint" and t is self._thread]
        assert len(alive) <= 1, alive
        assert self._failure is None or not alive, (self._failure, alive)

    def _finish(self, draft: Draft) -> None:
        try:
            finish(draft, self._keep, self._ranks, self._disk)
        except CheckpointFailed as error:
            self._failure = error
        except BaseException as error:  # another rank is gone, say
            what = f"checkpoint of step {draft.step} not written"
            self._failure = CheckpointFailed.of(what, {self._ranks.rank: error})

    def _copy(self, pieces: Pieces) -> Pieces:
        """The pieces in host memory of our own."""
        copied: Pieces = []
        for index, named in pieces:
            tensor, copy = named.tensor, self._copies.get(index)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._copies[index] = copy
            copy.copy_(tensor, non_blocking=True)
            copied.append((index, Named(named.name, copy, named.dtype)))
        if any(named.tensor.device.type == "cuda" for _, named in pieces):
            torch.cuda.synchronize()
        return copied
