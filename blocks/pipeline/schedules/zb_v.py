"""``zb_v``: two chunks on every rank, placed as a V, weight gradients in the gaps."""

import itertools
from collections.abc import Iterator, Sequence

from blocks.pipeline.action import Kind
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import (
    B,
    F,
    W,
    by_slice,
    check_chunks,
    check_sizes,
    expand,
    v_shaped,
)


def zb_v(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 2) -> Schedule:
    """The model goes down the ranks and back up: rank p has stages p and 2P-1-p, so the loss comes
    out of rank 0, which starts backward at once.

    With S >= 2P-1 sequences of one slice on P ranks and F = B = W at every stage, no rank waits
    between its first and its last action, and every rank keeps the activations of 2P chunks, P
    sequences' worth. Unequal times, as of attention over long contexts, bring bubbles back.

    Args:
        num_ranks: pipeline ranks, two stages each.
        num_slices: token slices of every sequence; a sequence goes through as a run of them.
        num_chunks: 2.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Qi et al. 2024, Pipeline parallelism with controllable memory, section 4.

    >>> zb_v(1, (1,)).programs[0]
    (F0(0,0), F1(0,0), B1(0,0), W1(0,0), B0(0,0), W0(0,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("zb_v", num_chunks, 2)
    padded = max(len(num_slices), 2 * num_ranks - 1)
    programs = [expand(_program(num_ranks, rank, padded), num_slices) for rank in range(num_ranks)]
    return by_slice("zb_v", v_shaped(num_ranks), num_slices, programs)


def _program(num_ranks: int, rank: int, num_sequences: int) -> Iterator[tuple[Kind, int, int]]:
    """The order for at least 2P-1 sequences; rank p is ``to_end`` = P-p from the turn."""
    to_end = num_ranks - rank
    down, up = _Chunk(0, num_sequences), _Chunk(1, num_sequences)
    yield from itertools.chain.from_iterable(down.next(F) for _ in range(2 * to_end - 1))
    for _ in range(rank):
        yield from (*up.next(F), *down.next(F))
    for _ in range(to_end):
        yield from (*up.next(F), *up.next(B), *up.next(W))
    while up.left(F):
        yield from (*down.next(F), *down.next(B), *down.next(W))
        yield from (*up.next(F), *up.next(B), *up.next(W))
    for _ in range(rank):
        yield from (*down.next(B), *up.next(B))
    for _ in range(to_end):
        yield from (*down.next(B), *down.next(W))
    for chunk in (up, down):
        while chunk.left(W):
            yield from chunk.next(W)


class _Chunk:
    """Counts what a chunk has done; each kind takes the sequences in order."""

    def __init__(self, chunk: int, num_sequences: int) -> None:
        self.chunk, self.num_sequences = chunk, num_sequences
        self.done = {F: 0, B: 0, W: 0}

    def left(self, kind: Kind) -> int:
        return self.num_sequences - self.done[kind]

    def next(self, kind: Kind) -> tuple[tuple[Kind, int, int], ...]:
        """The next step of ``kind``, or none if all are done."""
        if not self.left(kind):
            return ()
        self.done[kind] += 1
        return ((kind, self.chunk, self.done[kind] - 1),)
