"""Block copies that wait for the next forward pass."""

from collections.abc import Iterable


class PendingCopies:
    """Copies in the order they were asked for, without those that became useless.

    A copy is useless when its target was released before anybody read it. A target may be reused
    at once, be copied from, and be copied to again: `take` sorts that out by walking backwards, as
    a compiler does to find dead stores.
    """

    __slots__ = ("_events", "_targets")

    def __init__(self) -> None:
        self._events: list[tuple[int | None, int]] = []  # (source, target); None: target released
        self._targets: set[int] = set()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, source: int, target: int) -> None:
        """Ask that block ``target`` becomes a copy of block ``source``."""
        self._events.append((source, target))
        self._targets.add(target)

    def release(self, block_ids: Iterable[int]) -> None:
        """Blocks became free: nobody will read what a pending copy would put there."""
        for block_id in self._targets.intersection(block_ids):
            self._events.append((None, block_id))

    def take(self) -> list[tuple[int, int]]:
        """The copies still needed, to be run in this order; none are pending afterwards."""
        needed: list[tuple[int, int]] = []
        dead: set[int] = set()
        for source, target in reversed(self._events):
            if source is None:
                dead.add(target)
            elif target not in dead:
                needed.append((source, target))
                dead.add(target)  # whatever it held before is overwritten here
                dead.discard(source)
        self._events.clear()
        self._targets.clear()
        return needed[::-1]


def independent_groups(pairs: Iterable[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut copies into runs whose members may happen at the same time.

    Within a run no block is written twice, and none is both read and written; run after run, the
    result is that of one copy after the other.

    >>> independent_groups([(1, 2), (1, 3), (3, 4)])
    [[(1, 2), (1, 3)], [(3, 4)]]
    """
    groups: list[list[tuple[int, int]]] = []
    read: set[int] = set()
    written: set[int] = set()
    for source, target in pairs:
        if not groups or source in written or target in written or target in read:
            groups.append([])
            read.clear()
            written.clear()
        groups[-1].append((source, target))
        read.add(source)
        written.add(target)
    return groups
