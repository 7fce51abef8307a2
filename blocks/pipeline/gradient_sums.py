"""``GradientSums``: gradients added up in one order, whatever the order they come in."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blocks._checks import check


class _Part(NamedTuple):
    """A sum so far; one that is not owned may be somebody else's tensor."""

    tensor: Tensor
    owned: bool

    def plus(self, other: "_Part") -> "_Part":
        if self.owned:
            self.tensor.add_(other.tensor)
            return self
        return _Part(self.tensor + other.tensor, True)


class GradientSums:
    """The gradient of one parameter over the slices of a step.

    Contributions are added sequence by sequence, in each from the last slice to the first. One
    that comes before its turn waits. Sequences may belong to different lanes; each lane has a sum
    of its own, and lanes are added as a balanced binary tree in ascending order, as soon as they
    are complete: of n lanes about log2(n) sums are held. A lane without any contribution keeps its
    place in the tree and adds nothing.

    Invariants:
        1. Sums hold exactly the contributions of the turns before ``next_turn``, each lane's added
           in ascending order of turns.
        2. ``waiting`` holds no turn up to and including ``next_turn``.
        3. ``tree`` holds the complete lanes before the first that is not, heights descending.
    """

    def __init__(self, lane_of_turn: Sequence[int], *, keep_lanes: bool = False) -> None:
        """
        Args:
            lane_of_turn: the lane of every contribution, see ``turns``.
            keep_lanes: leave lanes as they are, for ``by_lane``.
        """
        self._lane_of_turn, self._keep_lanes = lane_of_turn, keep_lanes
        self._missing = collections.Counter(lane_of_turn)
        self._to_join = collections.deque(sorted(self._missing))
        self._sums: dict[int, _Part] = {}
        self._tree: list[tuple[int, _Part | None]] = []
        self._waiting: dict[int, Tensor | None] = {}
        self._next_turn = 0

    def add(self, turn: int, gradient: Tensor | None) -> None:
        """Count in the contribution of a turn; None where the parameter was not used."""
        if turn != self._next_turn:
            self._waiting[turn] = gradient
            return
        self._add(turn, gradient)
        while self._next_turn in self._waiting:
            self._add(self._next_turn, self._waiting.pop(self._next_turn))

    @torch.no_grad()
    def _add(self, turn: int, gradient: Tensor | None) -> None:
        self._next_turn = turn + 1
        lane = self._lane_of_turn[turn]
        if gradient is not None:
            part, before = _Part(gradient, False), self._sums.get(lane)
            self._sums[lane] = part if before is None else before.plus(part)
        self._missing[lane] -= 1
        if not self._missing[lane] and not self._keep_lanes:
            self._join()

    def _join(self) -> None:
        while self._to_join and not self._missing[self._to_join[0]]:
            node, height = self._sums.pop(self._to_join.popleft(), None), 0
            while self._tree and self._tree[-1][0] == height:
                node, height = _plus(self._tree.pop()[1], node), height + 1
            self._tree.append((height, node))

    @torch.no_grad()
    def total(self) -> Tensor | None:
        """The sum of all lanes; None where nothing was contributed."""
        self._check_complete()
        total = None
        for _, node in reversed(self._tree):
            total = _plus(node, total)
        if total is None:
            return None
        return total.tensor if total.owned else total.tensor.clone()

    def by_lane(self) -> dict[int, Tensor]:
        """The sum of every lane that got any contribution; needs ``keep_lanes``."""
        assert self._keep_lanes, "lanes were added up"
        self._check_complete()
        return {
            lane: part.tensor if part.owned else part.tensor.clone()
            for lane, part in self._sums.items()
        }

    def _check_complete(self) -> None:
        self.check_invariants()
        count = len(self._lane_of_turn)
        assert self._next_turn == count, f"turn {self._next_turn} of {count} has not come"

    def check_invariants(self) -> None:
        early = [turn for turn in self._waiting if turn <= self._next_turn]
        assert not early, f"turns {early} wait although turn {self._next_turn} has come"
        heights = [height for height, _ in self._tree]
        assert heights == sorted(set(heights), reverse=True), f"heights {heights}"
        joined = [lane for lane in self._sums if not self._keep_lanes and not self._missing[lane]]
        blocked = self._to_join and self._missing[self._to_join[0]]
        assert not joined or blocked, f"lanes {joined} are complete and not in the tree"


def _plus(first: _Part | None, second: _Part | None) -> _Part | None:
    if first is None or second is None:
        return second if first is None else first
    return first.plus(second)


def turns(num_slices: Iterable[int]) -> dict[tuple[int, int], int]:
    """The turn of every (sequence, slice).

    >>> turns([2, 1])
    {(0, 1): 0, (0, 0): 1, (1, 0): 2}
    """
    order = [
        (sequence, piece)
        for sequence, count in enumerate(num_slices)
        for piece in reversed(range(count))
    ]
    return {key: turn for turn, key in enumerate(order)}


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum as a balanced binary tree over the order given; one part is returned as it is.

    >>> import torch
    >>> tree_sum([torch.tensor(float(i)) for i in range(5)])
    tensor(10.)
    """
    check(len(parts) > 0, "parts", "at least one", "none")
    level = list(parts)
    while len(level) > 1:
        pairs = [a + b for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]
