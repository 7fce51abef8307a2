"""The blocks of many sequences: allocate, append, share, copy on write, find again.

Plain bookkeeping over ids; the tensors are `KVCache`'s. Meets the allocator contract of a scheduler
by shape, without knowing the scheduler.
"""

from collections.abc import Callable, Mapping, Sequence

from blocks._checks import check, fail
from blocks.kv.block_pool import NULL_BLOCK, BlockPool
from blocks.kv.block_table import BlockTable
from blocks.kv.copies import PendingCopies
from blocks.kv.findable import FindableBlocks
from blocks.kv.prefix_cache import PrefixCache, sha256
from blocks.kv.usage import KVUsage, count_usage


class BlockManager:
    """Block tables of sequences over one `BlockPool`, with `FindableBlocks` beside it.

    A call that cannot be met changes nothing: `allocate` returns None, `append` False. A block
    shared by several sequences is never written: the first to write into it gets its own copy,
    listed by `take_copies`.

    A sequence may write on to the end of its last block without an `append` for every token, but
    after a `fork` each side must `append` before it writes again: that is where copies happen.

    Invariants:
        1. A block's reference count is the number of tables that list it; no table lists it twice,
           none lists the null block.
        2. A table has exactly the blocks its positions need: ``ceil(num_tokens / block_size)``.
        3. Only full blocks are committed, at most as many as a table has.
        4. Used, cached and free blocks add up to the pool.
        5. A block shared by several tables is listed at the same index in each.

    `append` inside a block and `commit` inside a block are constant-time look-ups.

    Args:
        num_blocks: blocks of the cache, the null block included; at least 2.
        block_size: tokens per block.
        prefix_cache: whether committed blocks can be found again.
        digest: names contents, see `PrefixCache`.

    >>> manager = BlockManager(num_blocks=8, block_size=4)
    >>> manager.allocate(0, [5, 6, 7, 8, 9], num_tokens=5)
    0
    >>> manager.commit(0, [5, 6, 7, 8, 9], num_tokens=5)
    >>> manager.table(0)
    BlockTable(5 tokens in [1, 2])
    >>> manager.allocate(1, [5, 6, 7, 8, 3], num_tokens=5)  # four tokens were found
    4
    >>> manager.table(1)
    BlockTable(5 tokens in [1, 3])

    Reference: Kwon et al., 2023, PagedAttention, sections 4.2 to 4.4.
    """

    __slots__ = ("_copies", "_findable", "_pool", "_tables", "block_size")

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool = True,
        digest: Callable[[bytes], bytes] = sha256,
    ) -> None:
        self.block_size = block_size
        prefixes = PrefixCache(block_size, digest=digest)
        self._pool = BlockPool(num_blocks, on_evict=prefixes.forget)
        self._findable = FindableBlocks(self._pool, prefixes, enabled=prefix_cache)
        self._tables: dict[int, BlockTable] = {}
        self._copies = PendingCopies()

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that an empty pool could give."""
        return self._pool.num_blocks - 1

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, cached contents evicted where needed."""
        return self._pool.num_free

    @property
    def num_query_tokens(self) -> int:
        """Tokens of all admitted sequences, looked up in the prefix cache."""
        return self._findable.prefixes.num_query_tokens

    @property
    def num_hit_tokens(self) -> int:
        """Of those, tokens found there."""
        return self._findable.prefixes.num_hit_tokens

    def match_prefix(self, tokens: Sequence[int], namespace: str = "") -> int:
        """Leading tokens whose keys and values are cached. Pure look-up.

        A multiple of the block size, and less than ``len(tokens)``: one token is left to compute,
        since its logits are wanted.
        """
        return len(self._findable.match(tokens, namespace)) * self.block_size

    def allocate(
        self, sequence_id: int, tokens: Sequence[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        """Start a sequence: claim the cached prefix of ``tokens``, get slots for what follows.

        Args:
            sequence_id: not in use.
            tokens: all tokens known of the sequence.
            num_tokens: positions to be computed next end here; at most ``len(tokens)``. If more are
                cached, all of those are claimed.
            namespace: whom cached contents may be shared with.

        Returns:
            The number of cached tokens claimed, or None when blocks are short; then nothing has
            changed, cached blocks that would have been claimed included.

        Raises:
            ValueError: the sequence exists, or ``num_tokens`` is out of range.
        """
        if sequence_id in self._tables:
            raise fail("sequence_id", "one not in use", sequence_id, "free it first")
        if not 0 <= num_tokens <= len(tokens):
            raise fail("num_tokens", f"0 to {len(tokens)}, the tokens given", num_tokens)
        found = self._findable.match(tokens, namespace)
        pool = self._pool
        block_ids = [prefix.block_ids[0] for prefix in found]
        num_new = -(-num_tokens // self.block_size) - len(found)
        num_revived = sum(not pool.ref_count(block_id) for block_id in block_ids)
        if num_new > pool.num_free - num_revived:
            return None
        num_cached = len(found) * self.block_size
        pool.retain(block_ids)
        if num_new > 0:
            block_ids += pool.allocate(num_new)
        table = BlockTable(self.block_size, block_ids, max(num_tokens, num_cached))
        table.namespace = namespace
        table.num_committed = len(found)
        table.prefix = found[-1] if found else None
        self._tables[sequence_id] = table
        self._findable.prefixes.record(len(tokens), num_cached)
        return num_cached

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        """Give slots to the positions ``[0, num_tokens)`` and make those not yet covered writable.

        A shared, partly filled last block is replaced by a copy of its own.

        Returns:
            False when blocks are short; then nothing has changed.

        Raises:
            ValueError: an unknown sequence, or a negative ``num_tokens``.
        """
        table = self._tables.get(sequence_id)
        if table is None:
            raise self._unknown(sequence_id)
        block_ids, size, pool = table.block_ids, self.block_size, self._pool
        held = table.num_tokens
        if num_tokens <= held:
            check(num_tokens >= 0, "num_tokens", "at least 0", num_tokens)
            return True
        num_new = -(-num_tokens // size) - len(block_ids)
        if not held % size:  # the last block is full, or there is none
            if num_new > pool.num_free:
                return False
        elif pool.ref_count(block_ids[-1]) > 1:
            if num_new + 1 > pool.num_free:
                return False
            self._copy_last_block(block_ids)
        elif num_new > pool.num_free:
            return False
        if num_new:
            block_ids += pool.allocate(num_new)
        table.num_tokens = num_tokens
        return True

    def commit(self, sequence_id: int, tokens: Sequence[int], num_tokens: int) -> None:
        """Make the full blocks of ``tokens[:num_tokens]`` findable.

        Their keys and values are written, or will be by the end of the step being scheduled. Only
        blocks that became full since the last commit cost anything.

        Raises:
            ValueError: more tokens than given or than the sequence has slots for, or a token that
                is no 64-bit integer; nothing is committed.
        """
        table = self._tables.get(sequence_id)
        if table is None:
            raise self._unknown(sequence_id)
        size = self.block_size
        if num_tokens < (table.num_committed + 1) * size:
            return
        limit = min(len(tokens), len(table.block_ids) * size)
        if num_tokens > limit:
            raise fail("num_tokens", f"at most {limit}, the tokens with slots", num_tokens)
        self._findable.commit(table, tokens, num_tokens // size)
        table.num_tokens = max(table.num_tokens, num_tokens)

    def fork(self, parent_id: int, child_id: int) -> None:
        """Start a sequence that shares all blocks of another.

        To be called between steps: what the parent has slots for must be written already, since
        neither side may write into a shared block without an `append`.
        """
        parent = self.table(parent_id)
        if child_id in self._tables:
            raise fail("child_id", "one not in use", child_id, "free it first")
        self._pool.retain(parent.block_ids)
        child = BlockTable(self.block_size, parent.block_ids.copy(), parent.num_tokens)
        child.namespace = parent.namespace
        child.num_committed = parent.num_committed
        child.prefix = parent.prefix
        self._tables[child_id] = child

    def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
        """End a sequence and release its blocks, the tail first.

        Args:
            sequence_id: the sequence.
            num_valid_tokens: after a failed step, how many leading tokens surely have their keys
                and values; blocks beyond them can no longer be found. None: all.
        """
        table = self.table(sequence_id)
        if num_valid_tokens is not None:
            check(num_valid_tokens >= 0, "num_valid_tokens", "at least 0", num_valid_tokens)
            invalid = table.block_ids[num_valid_tokens // self.block_size :]
            self._findable.forget(reversed(invalid))
        del self._tables[sequence_id]
        self._release(table.block_ids)

    def table(self, sequence_id: int) -> BlockTable:
        """The block table of a sequence; live, not to be changed by the caller."""
        table = self._tables.get(sequence_id)
        if table is None:
            raise self._unknown(sequence_id)
        return table

    def take_copies(self) -> list[tuple[int, int]]:
        """Block copies (source, target) to run, in this order, before the next forward pass."""
        return self._copies.take() if self._copies else []

    def reset_prefix_cache(self) -> bool:
        """Make every cached block unfindable; refused (False) while any sequence lives."""
        if self._tables:
            return False
        self._findable.forget(self._pool.free_order())
        return True

    def usage(self, num_tokens: Mapping[int, int] | None = None) -> KVUsage:
        """Count blocks and slots. O(sequences).

        Args:
            num_tokens: by sequence id, how many tokens it has where the caller knows better: inside
                its last block a sequence may have grown without an `append`.
        """
        return count_usage(self._tables, self._pool, self.block_size, num_tokens or {})

    def check_invariants(self) -> None:
        """Assert the invariants of the class and of its parts. O(num_blocks + table entries)."""
        self._pool.check_invariants()
        self._findable.check_invariants()
        owners: dict[int, int] = {}
        index_of: dict[int, int] = {}
        for sequence_id, table in self._tables.items():
            ids = table.block_ids
            assert NULL_BLOCK not in ids, f"1: sequence {sequence_id} lists the null block"
            assert len(set(ids)) == len(ids), f"1: sequence {sequence_id} repeats a block: {ids}"
            assert len(ids) == -(-table.num_tokens // self.block_size), f"2: {sequence_id}: {table}"
            assert table.num_committed <= table.num_tokens // self.block_size, f"3: {table}"
            for index, block_id in enumerate(ids):
                owners[block_id] = owners.get(block_id, 0) + 1
                assert index_of.setdefault(block_id, index) == index, f"5: block {block_id} moved"
        for block_id in range(1, self._pool.num_blocks):
            listed, counted = owners.get(block_id, 0), self._pool.ref_count(block_id)
            assert listed == counted, f"1: block {block_id} in {listed} tables, counted {counted}"
        used = len(owners)
        assert used + self._pool.num_free == self.num_usable_blocks, f"4: {used} used"

    def _copy_last_block(self, block_ids: list[int]) -> None:
        (own,) = self._pool.allocate(1)
        shared = block_ids[-1]
        self._copies.add(shared, own)
        self._pool.release([shared])
        block_ids[-1] = own

    def _release(self, block_ids: list[int]) -> None:
        self._pool.release(block_ids)
        if self._copies:
            self._copies.release(b for b in block_ids if not self._pool.ref_count(b))

    def _unknown(self, sequence_id: int) -> ValueError:
        return fail("sequence_id", "a sequence with blocks", sequence_id, "allocate or fork it")
