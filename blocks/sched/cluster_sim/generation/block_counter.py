"""An allocator that counts: where nobody reads the blocks, their number is all there is."""

from collections import abc


class BlockCounter:
    """Meets ``Allocator`` without a prefix cache; sequences have one sample.

    **Invariants**

    1. What live sequences hold and what is free make up the pool.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_usable_blocks = num_blocks
        self.num_free_blocks = num_blocks
        self._held: dict[int, int] = {}

    def match_prefix(self, tokens: abc.Sequence[int], namespace: str = "") -> int:
        return 0

    def allocate(
        self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        assert sequence_id not in self._held, f"sequence {sequence_id} is live already"
        self._held[sequence_id] = 0
        if self.append(sequence_id, num_tokens):
            return 0
        del self._held[sequence_id]
        return None

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        num_new = max(0, -(-num_tokens // self.block_size) - self._held[sequence_id])
        if num_new > self.num_free_blocks:
            return False
        self.num_free_blocks -= num_new
        self._held[sequence_id] += num_new
        return True

    def commit(self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int) -> None:
        assert sequence_id in self._held, f"sequence {sequence_id} is not live"

    def fork(self, parent_id: int, child_id: int) -> None:
        raise NotImplementedError("expected one sample a request; pass an allocator that forks")

    def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
        self.num_free_blocks += self._held.pop(sequence_id)

    def check_invariants(self) -> None:
        """Assert invariant 1."""
        held = sum(self._held.values())
        assert held + self.num_free_blocks == self.num_usable_blocks, (held, self.num_free_blocks)
