"""``GradientSums``: gradients added up in one order, whatever the order they come in."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from blocks._checks import check


class GradientSums:
    """The gradient of one parameter over the slices of a step.

    Contributions are added sequence by sequence, in each from the last slice to the first. One
    that comes before its turn waits. Sequences may belong to different lanes; each lane has a sum
    of its own.

    Invariants:
        1. Sums hold exactly the contributions of the turns before ``next_turn``, each lane's added
           in ascending order of turns.
        2. ``waiting`` holds no turn up to and including ``next_turn``.
    """

    def __init__(self, lane_of_turn: Sequence[int]) -> None:
        self._lane_of_turn = lane_of_turn
        self._sums: dict[int, Tensor] = {}
        self._owned: set[int] = set()
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

    def _add(self, turn: int, gradient: Tensor | None) -> None:
        self._next_turn = turn + 1
        if gradient is None:
            return
        lane = self._lane_of_turn[turn]
        before = self._sums.get(lane)
        if before is None:
            self._sums[lane] = gradient  # it may be shared; the second sum is a new tensor
        elif lane in self._owned:
            before.add_(gradient)
        else:
            self._sums[lane] = before + gradient
            self._owned.add(lane)

    def finish(self) -> dict[int, Tensor]:
        """The sum of every lane that got any contribution."""
        self.check_invariants()
        all_there = self._next_turn == len(self._lane_of_turn)
        assert all_there, f"turn {self._next_turn} of {len(self._lane_of_turn)} has not come"
        for lane, total in self._sums.items():
            if lane not in self._owned:
                self._sums[lane] = total.clone()
        return self._sums

    def check_invariants(self) -> None:
        early = [turn for turn in self._waiting if turn <= self._next_turn]
        assert not early, f"turns {early} wait although turn {self._next_turn} has come"
        assert self._owned <= set(self._sums), f"{self._owned} against {set(self._sums)}"


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
