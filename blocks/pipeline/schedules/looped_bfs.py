"""``looped_bfs``: several chunks on every rank, breadth first."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import BW, F, by_slice, check_sizes, expand, looped


def looped_bfs(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """All sequences pass a chunk before any passes the next; backwards likewise, last chunk first.

    With v chunks on each of P ranks, S >= P sequences of one slice, and the forward of a rank's
    whole part F, its backward BW, each rank idles (P-1)(F+BW)/v, a bubble of (P-1)/(vS+P-1), and
    keeps the activations of S sequences. One chunk is ``gpipe``.

    Args:
        num_ranks: pipeline ranks.
        num_slices: token slices of every sequence; a sequence goes through as a run of them.
        num_chunks: stages on each rank.

    Raises:
        ValueError: a size below one.

    Reference: Lamy-Poirier 2022, Breadth-first pipeline parallelism, section 4.

    >>> looped_bfs(1, (1, 1), num_chunks=2).programs[0][:5]
    (F0(0,0), F0(1,0), F1(0,0), F1(1,0), BW1(0,0))
    """
    check_sizes(num_ranks, num_slices)
    placement = looped(num_ranks, num_chunks)
    sequences, chunks = range(len(num_slices)), range(num_chunks)
    program = [(F, chunk, s) for chunk in chunks for s in sequences]
    program += [(BW, chunk, s) for chunk in reversed(chunks) for s in sequences]
    programs = [expand(program, num_slices) for _ in range(num_ranks)]
    return by_slice("looped_bfs", placement, num_slices, programs)
