"""One forward, one backward, the units being token slices: on one chunk and on several."""

from collections.abc import Iterator, Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._alternate import alternate, one_by_one, rounds
from blocks.pipeline.schedules._build import Step, backwards, by_slice, forwards, looped


def alternate_slices(
    name: str, num_ranks: int, num_slices: Sequence[int], *, reach: int = 1
) -> Schedule:
    """One stage on each rank.

    The last rank runs forward what its next backward needs and, before every further backward, at
    least one slice; every other rank is ``reach`` slices further ahead than the one behind it.
    So a rank keeps at most ``max(num_slices) + reach * (num_ranks - 1)`` slices, however unequal
    the sequences are.
    """
    ahead = [(0, (s, i)) for s, count in enumerate(num_slices) for i in range(count)]
    back = [(0, (s, i)) for s, count in enumerate(num_slices) for i in range(count - 1, -1, -1)]
    counts: list[int] = []
    whole = 0
    for count in num_slices:
        whole += count
        for _ in range(count):
            counts.append(max(whole, counts[-1] + 1 if counts else 0))

    def program(rank: int) -> Iterator[Step]:
        behind = reach * (num_ranks - 1 - rank)
        for kind, chunk, (sequence, piece) in alternate(ahead, back, [c + behind for c in counts]):
            yield kind, chunk, sequence, piece

    programs = [program(rank) for rank in range(num_ranks)]
    return by_slice(name, looped(num_ranks, 1), num_slices, programs)


def alternate_chunks(
    name: str,
    num_ranks: int,
    num_slices: Sequence[int],
    num_chunks: int,
    *,
    depth: int,
    sequences_a_round: int,
) -> Schedule:
    """Several stages on each rank: rounds of whole sequences, cut into ``depth`` slices each, pass
    chunk after chunk. What exists of them is ``num_slices``."""
    num_rounds = -(-len(num_slices) // sequences_a_round)
    num_sequences, size = num_rounds * sequences_a_round, sequences_a_round * depth
    ahead = rounds(forwards(num_sequences, depth), size, range(num_chunks))
    back = rounds(backwards(num_sequences, depth), size, range(num_chunks - 1, -1, -1))

    def program(rank: int) -> Iterator[Step]:
        counts = one_by_one(num_ranks, rank, num_chunks, size, depth)
        for kind, chunk, (sequence, piece) in alternate(ahead, back, counts):
            yield kind, chunk, sequence, piece

    programs = [program(rank) for rank in range(num_ranks)]
    return by_slice(name, looped(num_ranks, num_chunks), num_slices, programs)
