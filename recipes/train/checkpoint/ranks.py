"""How the ranks of a save or a load agree: everything goes through rank 0."""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from recipes.train.checkpoint.checkpoint import CheckpointFailed

T = TypeVar("T")
R = TypeVar("R")


class Ranks(Protocol):
    """Exchange of small objects between the ranks that write one checkpoint."""

    @property
    def rank(self) -> int: ...

    @property
    def num_ranks(self) -> int: ...

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value in rank order on rank 0; None on the others."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""
        ...


class OneRank:
    """A run of one process."""

    rank = 0
    num_ranks = 1

    def gather(self, value: T) -> list[T] | None:
        return [value]

    def broadcast(self, value: T) -> T:
        return value


class GroupRanks:
    """The processes of a ``torch.distributed`` group.

    Args:
        group: one that nothing else uses, with a CPU backend: a save in the background exchanges
            on it while the step runs. ``of_world`` makes it.
    """

    @classmethod
    def of_world(cls) -> "GroupRanks":
        """All processes, in a gloo group of their own; every process calls it."""
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), group
        return cls(group)

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._first = dist.get_global_rank(group, 0)
        self.rank = dist.get_rank(group)
        self.num_ranks = dist.get_world_size(group)

    def gather(self, value: T) -> list[T] | None:
        found: list[Any] | None = [None] * self.num_ranks if self.rank == 0 else None
        dist.gather_object(value, found, dst=self._first, group=self._group)
        return found

    def broadcast(self, value: T) -> T:
        box: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=self._first, group=self._group)
        return box[0]


@dataclasses.dataclass(frozen=True)
class Failures:
    """What went wrong, by rank."""

    errors: dict[int, Exception]

    def error(self, what: str) -> Exception:
        """One error for all ranks: misuse as it is, anything else as ``CheckpointFailed``."""
        first = self.errors[min(self.errors)]
        if isinstance(first, ValueError):
            return first
        return CheckpointFailed.of(what, self.errors)


def attempt(work: Callable[[], T]) -> T | Exception:
    """What ``work`` returns, or the error it raised, in a form other processes can be sent."""
    try:
        return work()
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(repr(error))
        return error


def agree(ranks: Ranks, what: str, mine: T | Exception, decide: Callable[[list[T]], R]) -> R:
    """Rank 0 decides on what every rank brought; all get its decision, or all raise.

    Args:
        what: what is being done, for the message.
        mine: this rank's part, or the error that kept it from having one (see ``attempt``).
    """
    everyone = ranks.gather(mine)
    answer: Any = None
    if everyone is not None:
        errors = {i: part for i, part in enumerate(everyone) if isinstance(part, Exception)}
        if not errors:
            answer = attempt(lambda: decide(cast(list[T], everyone)))
            errors = {0: answer} if isinstance(answer, Exception) else {}
        if errors:
            answer = Failures(errors)
    answer = ranks.broadcast(answer)
    if isinstance(answer, Failures):
        raise answer.error(what)
    return answer
