"""The device that is simulated: slots that hold keys and values."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Entry
from blocks.sched.request import Sequence, State
from blocks.sched.simulate.model import draw, states

GARBAGE = -1


@runtime_checkable
class Slots(Protocol):
    """Where the positions of a sequence live."""

    def slots(self, start: int, stop: int) -> Iterable[int]: ...


@runtime_checkable
class PagedAllocator(Allocator, Protocol):
    """What the simulator needs of an allocator beyond the scheduler's needs."""

    def table(self, sequence_id: int) -> Slots: ...

    def take_copies(self) -> list[tuple[int, int]]: ...

    def check_invariants(self) -> None: ...


AllocatorFactory = Callable[[int, int], PagedAllocator]
"""``factory(num_usable_blocks, block_size)``"""


class Launch(NamedTuple):
    """A batch made ready to run: what a runner reads off the tables right after `schedule`."""

    entries: list[Entry]
    slots: list[list[int]]  # per entry, of positions [0, start + num_tokens)
    tokens: list[list[int]]  # per entry, of the same positions
    copies: list[tuple[int, int]]


class Memory:
    """The simulated device: writes keys and values to slots and reads back as attention would.

    A launch runs whole, whatever became of its sequences meanwhile.
    """

    def __init__(self, allocator: PagedAllocator) -> None:
        self.allocator = allocator
        self._cells: dict[int, int] = {}
        self._states: dict[int, list[int]] = {}

    def prepare(self, batch: Batch) -> Launch:
        """Take everything the step needs from the sequences and their tables."""
        slots, tokens = [], []
        for sequence, start, num_tokens, _, _ in batch.entries:
            stop = start + num_tokens
            slots.append(list(self.allocator.table(sequence.sequence_id).slots(0, stop)))
            tokens.append(sequence.tokens[:stop])
        return Launch(batch.entries, slots, tokens, self.allocator.take_copies())

    def run(self, launch: Launch) -> list[list[int]]:
        """Copies, then all writes, then all reads; the tokens drawn per entry."""
        self._copy(launch)
        expected = []
        for entry, slots, tokens in zip(*launch[:3], strict=True):
            sequence, start = entry.sequence, entry.start
            known: list[int] = []
            if sequence.state is not State.FINISHED:
                known = self._states.setdefault(sequence.sequence_id, known)
            expected.append(states(tokens, sequence.request.namespace, known)[: len(tokens)])
            self._cells.update(zip(slots[start:], expected[-1][start:], strict=True))
        return [
            self._read_and_draw(entry, slots, values)
            for entry, slots, values in zip(launch.entries, launch.slots, expected, strict=True)
        ]

    def break_down(self, launch: Launch, copied: bool) -> None:
        """A step that raises half-way: copies perhaps done, garbage where it was to write."""
        if copied:
            self._copy(launch)
        for entry, slots in zip(launch.entries, launch.slots, strict=True):
            self._cells.update(dict.fromkeys(slots[entry.start :], GARBAGE))

    def forget(self, sequence: Sequence) -> None:
        """The sequence is over."""
        self._states.pop(sequence.sequence_id, None)

    def _read_and_draw(self, entry: Entry, slots: list[int], expected: list[int]) -> list[int]:
        read = [self._cells.get(slot, GARBAGE) for slot in slots]
        if read != expected:
            first = next(i for i in range(len(read)) if read[i] != expected[i])
            raise AssertionError(f"{entry.sequence} reads wrong keys and values at {first}")
        if entry.num_samples == 1:
            return [draw(read[-1], entry.sequence.index)]
        return [draw(read[-1], index) for index in range(entry.num_samples)]

    def _copy(self, launch: Launch) -> None:
        size = self.allocator.block_size
        for source, target in launch.copies:
            for offset in range(size):
                value = self._cells.get(source * size + offset, GARBAGE)
                self._cells[target * size + offset] = value
