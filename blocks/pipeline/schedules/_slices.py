"""``alternate_slices``: one forward, one backward, the units being token slices."""

from collections.abc import Iterator, Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._alternate import alternate, num_ahead, rounds
from blocks.pipeline.schedules._build import Step, backwards, by_slice, forwards, looped


def alternate_slices(
    name: str,
    num_ranks: int,
    num_slices: Sequence[int],
    num_chunks: int,
    *,
    depth: int,
    sequences_a_round: int,
    reach: int | None = None,
) -> Schedule:
    """Rounds of whole sequences, cut into ``depth`` slices each, pass chunk after chunk.

    What exists of them is ``num_slices``. ``reach`` is that of ``num_ahead``.
    """
    num_rounds = -(-len(num_slices) // sequences_a_round)
    num_sequences, size = num_rounds * sequences_a_round, sequences_a_round * depth
    ahead = rounds(forwards(num_sequences, depth), size, range(num_chunks))
    back = rounds(backwards(num_sequences, depth), size, range(num_chunks - 1, -1, -1))

    def program(rank: int) -> Iterator[Step]:
        count = num_ahead(num_ranks, rank, num_chunks, size, depth, reach=reach)
        for kind, chunk, (sequence, piece) in alternate(ahead, back, count):
            yield kind, chunk, sequence, piece

    programs = [program(rank) for rank in range(num_ranks)]
    return by_slice(name, looped(num_ranks, num_chunks), num_slices, programs)
