"""Which blocks can be found again by their contents: the prefix cache and the pool, in step."""

from collections.abc import Iterable, Sequence

from blocks.kv.block_pool import BlockPool
from blocks.kv.block_table import BlockTable
from blocks.kv.prefix_cache import Prefix, PrefixCache


class FindableBlocks:
    """The full blocks of tables, entered into a `PrefixCache` and marked in the `BlockPool`.

    Invariants:
        1. Exactly the blocks in the prefix cache are marked findable in the pool.

    Args:
        pool: of the blocks; it must tell ``prefixes`` of blocks that it evicts.
        prefixes: knows blocks by what they hold.
        enabled: False where nothing is ever to be found.
    """

    __slots__ = ("_enabled", "_pool", "prefixes")

    def __init__(self, pool: BlockPool, prefixes: PrefixCache, *, enabled: bool) -> None:
        self._pool = pool
        self.prefixes = prefixes
        self._enabled = enabled

    def match(self, tokens: Sequence[int], namespace: str) -> list[Prefix]:
        """The cached prefixes of ``tokens``, one block longer each, but never of all tokens: one is
        left to compute, since its logits are wanted."""
        if not self._enabled:
            return []
        found = self.prefixes.match(tokens, namespace)
        if found and len(found) * self.prefixes.block_size >= len(tokens):
            return found[:-1]
        return found

    def commit(self, table: BlockTable, tokens: Sequence[int], last: int) -> None:
        """Make the blocks of a table up to block index ``last`` findable: those not committed yet.

        Raises:
            ValueError: a token that is no 64-bit integer; nothing is committed.
        """
        first, size = table.num_committed, self.prefixes.block_size
        if self._enabled and table.block_ids[first] in self.prefixes:
            first = self._pass_committed(table, tokens, last)
        if self._enabled and first < last:
            full = table.block_ids[first:last]
            full_tokens = tokens[first * size : last * size]
            prefix = self.prefixes.insert(table.prefix, full_tokens, full, table.namespace)
            if prefix.attached:
                self._pool.mark_findable(full)
            table.prefix = prefix
        table.num_committed = last

    def _pass_committed(self, table: BlockTable, tokens: Sequence[int], last: int) -> int:
        """Walk over blocks that a fork sharing them has committed; the first that is not."""
        size, first = self.prefixes.block_size, table.num_committed
        while first < last:
            block_id = table.block_ids[first]
            known = self.prefixes.prefix_of(block_id, tokens[first * size : (first + 1) * size])
            if known is None:
                break
            table.prefix = known
            first += 1
        return first

    def forget(self, block_ids: Iterable[int]) -> None:
        """Blocks whose contents are invalid; whoever holds them goes on holding them."""
        for block_id in block_ids:
            self.prefixes.forget(block_id)
            self._pool.forget(block_id)

    def check_invariants(self) -> None:
        """Assert the invariant of the class and those of the prefix cache. O(num_blocks)."""
        self.prefixes.check_invariants()
        num_findable = 0
        for block_id in range(1, self._pool.num_blocks):
            findable = self._pool.is_findable(block_id)
            assert findable == (block_id in self.prefixes), f"1: block {block_id}: {findable}"
            num_findable += findable
        assert num_findable == len(self.prefixes), "1: the prefix cache holds an unknown block"
