"""What is saved, and the error of a save that did not come to its end."""

import dataclasses
import errno
from collections.abc import Mapping
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What one rank has to save.

    step: optimizer steps done, the same on every rank.
    tensors: by name; whole tensors or ``DTensor``. A name stands for one tensor over all ranks:
        where several hold it whole, they must hold the same values and one of them writes it.
    state: plain JSON data; that of rank 0 is kept.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


class CheckpointFailed(OSError):
    """A checkpoint was not written; older ones are as they were. Every rank raises it."""

    @classmethod
    def of(cls, what: str, failures: Mapping[int, BaseException]) -> "CheckpointFailed":
        """The error of a save that failed on some ranks; ``errno`` is that of the first.

        Args:
            what: what was not done.
        """
        said = "; ".join(f"rank {rank}: {error!r}" for rank, error in sorted(failures.items()))
        first = failures[min(failures)]
        code = first.errno if isinstance(first, OSError) and first.errno else errno.EIO
        error = cls(code, f"{what}: {said}")
        error.__cause__ = first
        return error
