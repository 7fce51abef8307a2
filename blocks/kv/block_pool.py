"""Who owns which block: reference counts and the order in which free blocks are reused.

The pool knows ids, owners and one flag per block ("its contents can still be found"). It knows
nothing of tokens, hashes or tensors, so any engine can put it under its own cache.
"""

from collections.abc import Callable, Sequence

from blocks._checks import check_count, fail

NULL_BLOCK = 0
"""Id that pads block tables and stands for blocks that are no longer needed; never handed out."""


class OutOfBlocks(RuntimeError):
    """More blocks were asked for than are free; nothing was changed."""


class BlockPool:
    """A fixed set of blocks with reference counts and a least-recently-used free list.

    The free list is doubly linked through two preallocated lists, circular through the null block,
    which is never free: ``_next[0]`` is the block reused first, ``_prev[0]`` the one reused last.
    So a block leaves from the middle in O(1) when a free but findable block is claimed again.

    A block marked findable (`mark_findable`) keeps its contents after its last owner left: it
    queues at the back, and only when it is handed out again is ``on_evict`` told (lazy eviction).
    Blocks that nobody can find are reused first.

    Invariants:
        1. The null block is never free, never owned, never findable.
        2. Every other block is in the free list exactly when its reference count is 0.
        3. The list is linked both ways and its length is ``num_free``.
        4. In the list, blocks that are not findable come before those that are.
        5. ``num_evictable`` counts the free findable blocks.

    Every operation costs O(1) per block it names. Not thread-safe.

    Args:
        num_blocks: blocks in all, the null block included; at least 2.
        on_evict: called with the id of a findable block just before it is handed out anew.

    >>> pool = BlockPool(4)
    >>> pool.allocate(2)
    [1, 2]
    >>> pool.release([1, 2]), pool.num_free
    (None, 3)
    """

    __slots__ = (
        "_findable",
        "_next",
        "_on_evict",
        "_prev",
        "_ref_counts",
        "num_blocks",
        "num_evictable",
        "num_free",
    )

    def __init__(self, num_blocks: int, *, on_evict: Callable[[int], object] | None = None) -> None:
        hint = "one block is the null block"
        check_count("num_blocks", num_blocks, hint, least=2)
        self.num_blocks = num_blocks
        self.num_free = num_blocks - 1
        self.num_evictable = 0
        self._on_evict = on_evict
        self._ref_counts = [0] * num_blocks
        self._findable = bytearray(num_blocks)
        self._next = [*range(1, num_blocks), NULL_BLOCK]
        self._prev = [num_blocks - 1, *range(num_blocks - 1)]

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` blocks, each with one owner: the least recently used free ones.

        Raises:
            OutOfBlocks: fewer than ``count`` blocks are free.
            ValueError: ``count`` is negative.
        """
        if not 0 <= count <= self.num_free:
            raise self._refusal(count)
        links, ref_counts, findable = self._next, self._ref_counts, self._findable
        taken = []
        block_id = links[NULL_BLOCK]
        for _ in range(count):
            taken.append(block_id)
            ref_counts[block_id] = 1
            if findable[block_id]:
                findable[block_id] = 0
                self.num_evictable -= 1
                if self._on_evict is not None:
                    self._on_evict(block_id)
            block_id = links[block_id]
        links[NULL_BLOCK] = block_id  # all taken ones are cut off at once
        self._prev[block_id] = NULL_BLOCK
        self.num_free -= count
        return taken

    def retain(self, block_ids: Sequence[int]) -> None:
        """Add an owner to each block; a free one leaves the free list with its contents intact.

        Raises:
            ValueError: an id that is unknown or the null block, or a free block that is not
                findable (its contents are nobody's to share); nothing is changed.
        """
        ref_counts, findable = self._ref_counts, self._findable
        for block_id in block_ids:
            self._check_id(block_id)
            if not (ref_counts[block_id] or findable[block_id]):
                hint = "allocate hands out new blocks"
                raise fail("block to retain", "an owned or findable block", block_id, hint)
        for block_id in block_ids:
            if not ref_counts[block_id]:
                self._unlink(block_id)
                self.num_free -= 1
                self.num_evictable -= 1
            ref_counts[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one owner from each block, the last first; those without owners become free.

        Tail first, so that of a prefix the end is evicted before the beginning, without which it
        could not be found. A block named several times loses as many owners.

        Raises:
            ValueError: an unknown id, or more releases than owners; nothing is changed.
        """
        self._check_release(block_ids)
        ref_counts, findable = self._ref_counts, self._findable
        for block_id in reversed(block_ids):
            left = ref_counts[block_id] - 1
            ref_counts[block_id] = left
            if not left:
                self.num_free += 1
                if findable[block_id]:
                    self.num_evictable += 1
                    self._link_after(self._prev[NULL_BLOCK], block_id)
                else:
                    self._link_after(NULL_BLOCK, block_id)

    def mark_findable(self, block_ids: Sequence[int]) -> None:
        """Keep the contents of owned blocks findable until they are handed out again.

        Raises:
            ValueError: an unknown id or a free block; nothing is changed.
        """
        ref_counts, findable = self._ref_counts, self._findable
        for block_id in block_ids:
            self._check_id(block_id)
            if not ref_counts[block_id]:
                raise fail("block to mark findable", "an owned block", f"free block {block_id}")
        for block_id in block_ids:
            findable[block_id] = 1

    def forget(self, block_id: int) -> None:
        """Drop the findable mark, if any; a free block moves to the front and is reused next."""
        self._check_id(block_id)
        if not self._findable[block_id]:
            return
        self._findable[block_id] = 0
        if not self._ref_counts[block_id]:
            self.num_evictable -= 1
            self._unlink(block_id)
            self._link_after(NULL_BLOCK, block_id)

    def ref_count(self, block_id: int) -> int:
        """Number of owners of a block."""
        self._check_id(block_id)
        return self._ref_counts[block_id]

    def is_findable(self, block_id: int) -> bool:
        """Whether the block's contents are still to be found by `retain`."""
        self._check_id(block_id)
        return bool(self._findable[block_id])

    def free_order(self) -> list[int]:
        """The free blocks in the order in which they will be reused. O(num_free)."""
        order = []
        block_id = self._next[NULL_BLOCK]
        while block_id != NULL_BLOCK and len(order) <= self.num_blocks:
            order.append(block_id)
            block_id = self._next[block_id]
        return order

    def check_invariants(self) -> None:
        """Assert the invariants of the class. O(num_blocks)."""
        order = self.free_order()
        free = set(order)
        assert NULL_BLOCK not in free, "1: the null block is in the free list"
        assert not self._ref_counts[NULL_BLOCK], "1: the null block has owners"
        assert not self._findable[NULL_BLOCK], "1: the null block is findable"
        assert len(order) == len(free) == self.num_free, (
            f"3: num_free is {self.num_free}, the list has {len(order)} entries, {len(free)} ids"
        )
        for block_id, count in enumerate(self._ref_counts[1:], start=1):
            assert count >= 0, f"2: block {block_id} has {count} owners"
            listed = block_id in free
            assert (count == 0) == listed, f"2: block {block_id}: {count} owners, free: {listed}"
        for before, after in zip([NULL_BLOCK, *order], [*order, NULL_BLOCK], strict=True):
            assert self._prev[after] == before, f"3: {after} links back to {self._prev[after]}"
        flags = [self._findable[block_id] for block_id in order]
        assert flags == sorted(flags), f"4: a findable block is reused early: {order}, {flags}"
        assert self.num_evictable == sum(flags), (
            f"5: num_evictable is {self.num_evictable}, counted {sum(flags)}"
        )

    def _link_after(self, before: int, block_id: int) -> None:
        after = self._next[before]
        self._next[before] = self._prev[after] = block_id
        self._prev[block_id], self._next[block_id] = before, after

    def _unlink(self, block_id: int) -> None:
        before, after = self._prev[block_id], self._next[block_id]
        self._next[before], self._prev[after] = after, before

    def _check_id(self, block_id: int) -> None:
        if not NULL_BLOCK < block_id < self.num_blocks:
            raise fail("block id", f"1 to {self.num_blocks - 1}", block_id)

    def _check_release(self, block_ids: Sequence[int]) -> None:
        named: dict[int, int] = {}
        for block_id in block_ids:
            self._check_id(block_id)
            named[block_id] = times = named.get(block_id, 0) + 1
            owners = self._ref_counts[block_id]
            if times > owners:
                what = f"release of block {block_id}"
                raise fail(what, f"at most its {owners} owners", times, "was it released twice?")

    def _refusal(self, count: int) -> Exception:
        if count < 0:
            return fail("count", "a number of blocks", count)
        return OutOfBlocks(
            f"expected at most {self.num_free} blocks (free now, of {self.num_blocks - 1}), "
            f"got a request for {count}; free some or wait"
        )
