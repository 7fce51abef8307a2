"""An allocator that is short now and then."""

import random

from blocks.sched.simulate.memory import PagedAllocator


class FaultyAllocator:
    """Passes everything on, but says "not now" at random while ``rate`` is above 0."""

    def __init__(self, inner: PagedAllocator, rng: random.Random, rate: float) -> None:
        self.inner = inner
        self.rng = rng
        self.rate = rate
        self.num_refused = 0
        self.block_size = inner.block_size
        self.num_usable_blocks = inner.num_usable_blocks
        self.match_prefix = inner.match_prefix
        self.commit = inner.commit
        self.fork = inner.fork
        self.free = inner.free

    @property
    def num_free_blocks(self) -> int:
        return self.inner.num_free_blocks

    def allocate(
        self, sequence_id: int, tokens: list[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        if self._refuses():
            return None
        return self.inner.allocate(sequence_id, tokens, num_tokens, namespace)

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        return not self._refuses() and self.inner.append(sequence_id, num_tokens)

    def _refuses(self) -> bool:
        refused = self.rng.random() < self.rate
        self.num_refused += refused
        return refused
