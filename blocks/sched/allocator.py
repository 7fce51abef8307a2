"""What the scheduler asks of whoever owns the cache blocks."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Allocator(Protocol):
    """Gives cache blocks to sequences; ``blocks.kv.BlockManager`` meets it by shape.

    "Not now" is a return value, and then nothing has changed. A sequence id is live from
    `allocate` or `fork` until `free`.
    """

    @property
    def block_size(self) -> int:
        """Token slots per block."""
        ...

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that an empty pool could give to one sequence."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, cached ones without an owner included."""
        ...

    def match_prefix(self, tokens: Sequence[int], namespace: str = "") -> int:
        """Leading tokens in the cache: whole blocks, fewer than ``len(tokens)``. Pure look-up."""
        ...

    def allocate(
        self, sequence_id: int, tokens: Sequence[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        """Start a sequence: claim the cached prefix of ``tokens`` and blocks for positions
        ``[0, num_tokens)``. Returns the cached tokens claimed; None when blocks are short."""
        ...

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        """Give positions ``[0, num_tokens)`` slots that only this sequence writes: a shared, partly
        filled last block is copied. All or nothing; False when blocks are short."""
        ...

    def commit(self, sequence_id: int, tokens: Sequence[int], num_tokens: int) -> None:
        """``tokens[:num_tokens]`` have their keys and values written by the end of the step now
        being scheduled: their full blocks become findable. Not those that `allocate` claimed: they
        are, or whoever is to write them has given up."""
        ...

    def fork(self, parent_id: int, child_id: int) -> None:
        """Start a sequence that shares every block of ``parent_id``. Takes no block."""
        ...

    def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
        """Release all blocks, tail first. Blocks that hold positions from ``num_valid_tokens`` on
        are no longer findable, whoever else holds them."""
        ...
