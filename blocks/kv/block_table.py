"""Where the tokens of one sequence live: its blocks in order, and how many positions have slots."""

from blocks._checks import check_count
from blocks.kv.prefix_cache import Prefix


class BlockTable:
    """Logical to physical: block index ``i`` of the sequence is block ``block_ids[i]``.

    block_ids: physical ids in order; the list grows at the end and is replaced only in its last
        entry (copy-on-write), so a reader may keep a copy and append.
    num_tokens: positions ``[0, num_tokens)`` have slots.
    prefix: what the prefix cache knows of the committed blocks; None before the first.
    num_committed: leading blocks that were committed.
    namespace: whom the contents may be shared with.
    """

    __slots__ = ("block_ids", "block_size", "namespace", "num_committed", "num_tokens", "prefix")

    def __init__(self, block_size: int, block_ids: list[int], num_tokens: int) -> None:
        check_count("block_size", block_size)
        check_count("num_tokens", num_tokens, least=0)
        self.block_size = block_size
        self.block_ids = block_ids
        self.num_tokens = num_tokens
        self.prefix: Prefix | None = None
        self.num_committed = 0
        self.namespace = ""

    def slots(self, start: int, stop: int) -> list[int]:
        """Slots of the positions ``[start, stop)``: ``block_id * block_size + offset``.

        Raises:
            ValueError: a position that has no slot yet.
        """
        size, ids = self.block_size, self.block_ids
        if not 0 <= start <= stop <= len(ids) * size:
            raise ValueError(
                f"positions: expected a range within [0, {len(ids) * size}), "
                f"got [{start}, {stop}); append before asking for slots"
            )
        if stop - start == 1:
            return [ids[start // size] * size + start % size]
        slots: list[int] = []
        while start < stop:
            index, offset = divmod(start, size)
            count = min(size - offset, stop - start)
            first = ids[index] * size + offset
            slots.extend(range(first, first + count))
            start += count
        return slots

    def __repr__(self) -> str:
        return f"BlockTable({self.num_tokens} tokens in {self.block_ids})"
