"""Which request breaks the steps it is in: found by halving those that are suspected."""

from collections import abc

from blocks.sched.request import Sequence
from blocks.sched.roster import Roster


class Suspicion:
    """Who may have broken a step, and how many of them may run at a time.

    The sequences of a failed step become suspects, and half as many of them run at a time after
    each further failure, until each has gained a token (`acquit`). One that fails as the only
    suspect, more than ``max_failures`` times in all, is the culprit. So a request that breaks every
    step is found in a logarithmic number of failures. Suspects never decode: a failure takes their
    blocks, and the first token acquits.

    **Invariants**

    1. At most ``limit`` suspects run at a time; none of them decodes.
    """

    __slots__ = ("_roster", "limit", "max_failures")

    def __init__(self, roster: Roster, *, max_failures: int, max_num_seqs: int) -> None:
        self._roster = roster
        self.max_failures = max_failures
        self.limit = max_num_seqs

    def may_run(self, sequence: Sequence) -> bool:
        """Whether suspicion lets a waiting sequence start."""
        if not sequence.num_failures:
            return True
        return len(self.running()) < self.limit

    def running(self) -> list[Sequence]:
        """The suspects that run."""
        return [sequence for sequence in self._roster.prefilling if sequence.num_failures]

    def accuse(self, sequences: abc.Sequence[Sequence]) -> Sequence | None:
        """The step of these sequences failed: the old suspects among them are more so, or all are
        suspects where there were none. Returns the culprit, once there is no doubt."""
        suspects = [sequence for sequence in sequences if sequence.num_failures] or sequences
        if not suspects:
            return None
        self.limit = max(1, len(suspects) // 2)
        for sequence in suspects:
            sequence.num_failures += 1
        is_alone = len(suspects) == 1
        return suspects[0] if is_alone and suspects[0].num_failures > self.max_failures else None

    def acquit(self, sequence: Sequence) -> None:
        """It has gained a token."""
        sequence.num_failures = 0

    def check_invariants(self) -> None:
        """Assert invariant 1."""
        running = self.running()
        assert len(running) <= self.limit, f"1: {self.limit}, {running}"
        decoding = [sequence for sequence in self._roster.decoding if sequence.num_failures]
        assert not decoding, f"1: {decoding} gained a token"
