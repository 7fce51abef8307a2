"""Where the slots of the cache are: what holds tokens, and what is waste."""

import dataclasses
from collections.abc import Mapping

from blocks.kv.block_pool import BlockPool
from blocks.kv.block_table import BlockTable


@dataclasses.dataclass(frozen=True)
class KVUsage:
    """A count of blocks and slots at one moment; the null block is left out of all of them.

    num_blocks: blocks that can be handed out.
    num_used_blocks: blocks with an owner.
    num_cached_blocks: free blocks whose contents can still be found.
    num_free_blocks: free blocks without contents.
    block_size: slots per block.
    num_sequences: block tables.
    num_stored_tokens: slots of used blocks that have a token; a shared slot counts once.
    num_logical_tokens: tokens of all sequences; a shared slot counts once for each.
    num_reserved_slots: slots of whole blocks held for tokens to come. Zero: a block is taken only
        when its first token is.
    num_internal_slots: slots of used blocks without a token: the ends of last blocks.
    num_external_slots: free slots that no request could be given. Zero: any free block fits.
    """

    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_free_blocks: int
    block_size: int
    num_sequences: int
    num_stored_tokens: int
    num_logical_tokens: int
    num_reserved_slots: int
    num_internal_slots: int
    num_external_slots: int

    @property
    def num_slots(self) -> int:
        """Slots in all."""
        return self.num_blocks * self.block_size

    @property
    def used_fraction(self) -> float:
        """Share of the blocks that have an owner."""
        return self.num_used_blocks / self.num_blocks

    @property
    def waste_fraction(self) -> float:
        """Share of the slots taken out of service that hold no token; 0 when none are taken."""
        wasted = self.num_reserved_slots + self.num_internal_slots + self.num_external_slots
        return wasted / max(1, wasted + self.num_stored_tokens)

    @property
    def shared_fraction(self) -> float:
        """Share of the sequences' tokens that need no slot of their own."""
        return 1 - self.num_stored_tokens / max(1, self.num_logical_tokens)


def count_usage(
    tables: Mapping[int, BlockTable],
    pool: BlockPool,
    block_size: int,
    num_tokens: Mapping[int, int],
) -> KVUsage:
    """Count blocks and slots. O(sequences).

    Args:
        tables: by sequence id.
        pool: of their blocks.
        block_size: slots per block.
        num_tokens: by sequence id, how many tokens it has where that is more than its table knows.
    """
    filled_ends: dict[int, int] = {}  # last block -> its slots with a token
    num_logical = 0
    for sequence_id, table in tables.items():
        most = len(table.block_ids) * block_size
        length = min(most, max(table.num_tokens, num_tokens.get(sequence_id, 0)))
        num_logical += length
        if length % block_size:
            last = table.block_ids[-1]
            filled_ends[last] = max(filled_ends.get(last, 0), length % block_size)
    num_blocks = pool.num_blocks - 1  # the null block holds nothing
    num_used = num_blocks - pool.num_free
    num_internal = len(filled_ends) * block_size - sum(filled_ends.values())
    return KVUsage(
        num_blocks=num_blocks,
        num_used_blocks=num_used,
        num_cached_blocks=pool.num_evictable,
        num_free_blocks=pool.num_free - pool.num_evictable,
        block_size=block_size,
        num_sequences=len(tables),
        num_stored_tokens=num_used * block_size - num_internal,
        num_logical_tokens=num_logical,
        num_reserved_slots=0,
        num_internal_slots=num_internal,
        num_external_slots=0,
    )
