"""The smallest allocator that meets the Protocol, and says so when it is misused.

For the simulator, the tests and a first look at the scheduler. Prefixes are found by comparing
whole token tuples, so it is obviously right and far too slow to serve with.
"""

import collections
import dataclasses
from collections import abc

from blocks._checks import check_count

Prefix = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(slots=True)
class Table:
    """The blocks of one sequence; the first ``num_committed`` were found or are committed."""

    block_ids: list[int]
    namespace: str
    block_size: int
    num_committed: int

    def slots(self, start: int, stop: int) -> list[int]:
        """Slot of each position in ``[start, stop)``."""
        size = self.block_size
        return [self.block_ids[p // size] * size + p % size for p in range(start, stop)]


class ReferenceAllocator:
    """Blocks with reference counts, a prefix index and copy-on-write.

    **Invariants**

    1. A block's count is the number of tables that hold it; blocks without owner are in ``_free``.
    2. Index and labels are inverse to one another.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        check_count("num_blocks", num_blocks)
        check_count("block_size", block_size)
        self.block_size = block_size
        self.num_usable_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._free = collections.OrderedDict.fromkeys(range(num_blocks))  # next to go first
        self._label: list[Prefix | None] = [None] * num_blocks
        self._index: dict[Prefix, int] = {}
        self._tables: dict[int, Table] = {}
        self._copies: list[tuple[int, int]] = []

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def table(self, sequence_id: int) -> Table:
        """The live sequence's blocks."""
        return self._tables[sequence_id]

    def take_copies(self) -> list[tuple[int, int]]:
        """Block copies (source, destination) to run before the next step, once each."""
        copies, self._copies = self._copies, []
        return copies

    def match_prefix(self, tokens: abc.Sequence[int], namespace: str = "") -> int:
        return len(self._hits(tokens, namespace)) * self.block_size

    def allocate(
        self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        assert sequence_id not in self._tables, f"sequence {sequence_id} is live already"
        hits = self._hits(tokens, namespace)
        num_new = -(-num_tokens // self.block_size) - len(hits)
        if num_new > len(self._free) - sum(1 for block in hits if not self._refs[block]):
            return None
        for block in hits:
            self._refs[block] += 1
            self._free.pop(block, None)
        table = Table(hits, namespace, self.block_size, len(hits))
        self._tables[sequence_id] = table
        num_cached = len(hits) * self.block_size
        table.block_ids += [self._take() for _ in range(num_new)]
        return num_cached

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        table = self._tables[sequence_id]
        blocks = table.block_ids
        last = (num_tokens - 1) // self.block_size
        is_shared = last < len(blocks) and self._refs[blocks[last]] > 1
        num_new = max(0, last + 1 - len(blocks)) + is_shared
        if num_new > len(self._free):
            return False
        if is_shared:
            source, blocks[last] = blocks[last], self._take()
            self._refs[source] -= 1
            self._copies.append((source, blocks[last]))
        else:
            blocks += [self._take() for _ in range(num_new)]
        return True

    def commit(self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int) -> None:
        table = self._tables[sequence_id]
        for i in range(table.num_committed, num_tokens // self.block_size):
            table.num_committed += 1
            block = table.block_ids[i]
            if self._label[block] is None:
                prefix = (table.namespace, tuple(tokens[: (i + 1) * self.block_size]))
                if self._index.setdefault(prefix, block) == block:
                    self._label[block] = prefix

    def fork(self, parent_id: int, child_id: int) -> None:
        assert child_id not in self._tables, f"sequence {child_id} is live already"
        parent = self._tables[parent_id]
        self._tables[child_id] = dataclasses.replace(parent, block_ids=list(parent.block_ids))
        for block in parent.block_ids:
            self._refs[block] += 1

    def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
        table = self._tables.pop(sequence_id)
        size = self.block_size
        for i in reversed(range(len(table.block_ids))):
            block = table.block_ids[i]
            if num_valid_tokens is not None and (i + 1) * size > num_valid_tokens:
                self._forget(block)
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
                self._copies = [copy for copy in self._copies if copy[1] != block]
                if self._label[block] is None:
                    self._free.move_to_end(block, last=False)

    def _hits(self, tokens: abc.Sequence[int], namespace: str) -> list[int]:
        hits: list[int] = []
        for stop in range(self.block_size, len(tokens), self.block_size):
            block = self._index.get((namespace, tuple(tokens[:stop])))
            if block is None:
                break
            hits.append(block)
        return hits

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._refs[block] = 1
        return block

    def _forget(self, block: int) -> None:
        label, self._label[block] = self._label[block], None
        if label is not None:
            del self._index[label]

    def check_invariants(self) -> None:
        """Assert invariants 1 and 2."""
        owners = collections.Counter(b for t in self._tables.values() for b in t.block_ids)
        for block, refs in enumerate(self._refs):
            assert refs == owners[block], (block, refs, owners[block])  # 1
            assert (refs == 0) == (block in self._free), (block, refs)  # 1
        labels = {label: block for block, label in enumerate(self._label) if label is not None}
        assert labels == self._index  # 2
