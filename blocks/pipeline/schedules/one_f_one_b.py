"""``one_f_one_b``: one forward, one backward, over whole sequences."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._alternate import alternate, one_by_one
from blocks.pipeline.schedules._build import by_slice, check_chunks, check_sizes, expand


def one_f_one_b(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """Rank p runs P-p sequences forward, then one backward and one forward in turn.

    With S sequences of one slice on P ranks and every forward F and backward BW alike, each rank
    idles (P-1)(F+BW), a bubble of (P-1)/(S+P-1), as with ``gpipe``; rank p keeps the activations
    of min(P-p, S) sequences. A sequence of several slices goes through as a run of them.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Narayanan et al. 2019, PipeDream, section 3.2, with a flush at the end of the step
    (Fan et al. 2021, DAPPLE).

    >>> one_f_one_b(2, (1, 1, 1)).programs[0]
    (F0(0,0), F0(1,0), BW0(0,0), F0(2,0), BW0(1,0), BW0(2,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("one_f_one_b", num_chunks, 1)
    units = [(0, s) for s in range(len(num_slices))]
    programs = [
        expand(alternate(units, units, one_by_one(num_ranks, rank, 1, 1, 1)), num_slices)
        for rank in range(num_ranks)
    ]
    return by_slice("one_f_one_b", tuple(range(num_ranks)), num_slices, programs)
