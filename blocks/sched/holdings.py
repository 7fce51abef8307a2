"""What each sequence holds of the cache; nobody else speaks to the allocator."""

from collections.abc import Iterable

from blocks.sched.allocator import Allocator
from blocks.sched.request import Sequence, State


class Holdings:
    """Takes cache blocks for sequences and gives them back, and notes on each what it has.

    Sets ``num_computed``, ``num_scheduled``, ``num_cached`` and ``num_slots`` where blocks come and
    go; what steps compute in between is noted by those who schedule and update them.

    **Invariants**

    1. A waiting sequence holds nothing: no blocks, no position computed or scheduled, no slot.
    2. A prefilling sequence has slots for all its tokens and at least one left to compute.
    3. A decoding sequence has all but its last token computed.

    Args:
        allocator: owner of the cache blocks.
        watermark: share of the usable blocks that a newcomer leaves free for those that run.
    """

    __slots__ = ("_blocked", "_reserve", "allocator", "block_size", "num_usable_blocks")

    def __init__(self, allocator: Allocator, watermark: float) -> None:
        self.allocator = allocator
        self.block_size = allocator.block_size
        self.num_usable_blocks = allocator.num_usable_blocks
        self._reserve = int(watermark * self.num_usable_blocks)
        self._blocked: tuple[int, int] | None = None

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks for that many positions."""
        return -(-num_tokens // self.block_size)

    def claim(self, sequence: Sequence, *, others_run: bool) -> bool:
        """Blocks for all tokens of a waiting sequence, cached ones included, or False and nothing.

        While others run, their reserve is left to them, and a failed try is repeated only once the
        free blocks have changed.
        """
        allocator, tokens = self.allocator, sequence.tokens
        attempt = (sequence.sequence_id, allocator.num_free_blocks)
        if others_run and (attempt == self._blocked or not self._leaves_reserve(sequence)):
            self._blocked = attempt
            return False
        namespace = sequence.request.namespace
        num_cached = allocator.allocate(sequence.sequence_id, tokens, len(tokens), namespace)
        if num_cached is None:
            self._blocked = attempt
            return False
        self._blocked = None
        sequence.num_computed = sequence.num_scheduled = sequence.num_cached = num_cached
        sequence.num_slots = self.num_blocks(len(tokens)) * self.block_size
        return True

    def _leaves_reserve(self, sequence: Sequence) -> bool:
        """Whether claiming leaves the watermark's blocks free; looks at hits only if tight."""
        spare = self.allocator.num_free_blocks - self._reserve
        need = self.num_blocks(len(sequence.tokens))
        if need <= spare:
            return True
        hits = self.allocator.match_prefix(sequence.tokens, sequence.request.namespace)
        return need - hits // self.block_size <= spare

    def extend(self, sequence: Sequence) -> bool:
        """Make the next position of a decoding sequence writable; False when blocks are short."""
        num_tokens = sequence.num_computed + 1
        if not self.allocator.append(sequence.sequence_id, num_tokens):
            return False
        sequence.num_slots = self.num_blocks(num_tokens) * self.block_size
        return True

    def fill(self, sequence: Sequence, num_tokens: int) -> None:
        """So many tokens are computed by the end of the coming step: others may find them."""
        self.allocator.commit(sequence.sequence_id, sequence.tokens, num_tokens)

    def share(self, parent: Sequence, child: Sequence) -> None:
        """A new sample holds what its parent does."""
        self.allocator.fork(parent.sequence_id, child.sequence_id)
        # The last block is shared now: whoever writes it next must ask for a copy.
        child.num_computed = child.num_slots = parent.num_slots = parent.num_computed
        child.num_scheduled = child.num_computed

    def release(self, sequence: Sequence, num_valid_tokens: int | None = None) -> None:
        """Give up whatever a sequence holds: the only place that does.

        Blocks stay findable as far as updates have confirmed them, or ``num_valid_tokens``. They
        may be read and written yet by batches that are out, before any batch to come; entries of
        these batches are stale from here on.
        """
        if sequence.state is not State.WAITING:
            num_valid = sequence.num_computed if num_valid_tokens is None else num_valid_tokens
            self.allocator.commit(sequence.sequence_id, sequence.tokens, num_valid)
            self.allocator.free(sequence.sequence_id, num_valid)
            sequence.num_computed = sequence.num_slots = 0
            sequence.num_scheduled = 0
        sequence.epoch += 1

    def check_invariants(self, sequences: Iterable[Sequence]) -> None:
        """Assert invariants 1 to 3 for all live sequences."""
        for sequence in sequences:
            computed, slots, total = sequence.num_computed, sequence.num_slots, len(sequence.tokens)
            if sequence.state is State.WAITING:
                held = (computed, sequence.num_scheduled, slots)
                assert held == (0, 0, 0), f"1: {sequence} holds {held}"
            elif sequence.state is State.PREFILLING:
                assert computed < total <= slots, f"2: {sequence}, {slots} slots"
            else:
                assert computed == total - 1, f"3: {sequence}"
