"""``seq1f1b``: one forward, one backward, over token slices."""

from collections.abc import Sequence

from blocks._checks import check_count
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import check_chunks, check_sizes
from blocks.pipeline.schedules._slices import alternate_slices


def seq1f1b(
    num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1, reach: int = 1
) -> Schedule:
    """Rank p runs P-p-1+M slices forward, then one backward and one forward in turn.

    Slices queue first in, first out between sequences, last in, first out inside one. With S
    sequences of M slices on P ranks, a sequence's forward F and backward BW cut evenly, each rank
    idles (P-1)(F+BW)/M, a bubble of (P-1)/(SM+P-1); rank p keeps min((M+P-1-p)/M, S) sequences'
    worth of activations.

    Slices of unequal cost meet on different ranks in every turn, and because each rank is but one
    slice ahead of the next, every turn lasts as long as its heaviest: far more is lost than at the
    ends. A larger ``reach`` r has rank p run r(P-1-p)+M slices forward first, so that heavy and
    light turns even out; it keeps (M+r(P-1-p))/M sequences' worth, and equal slices gain nothing.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence; unequal ones too, M being the largest.
        num_chunks: 1.
        reach: slices by which each rank is ahead of the next; 1 is the published order.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Sun et al. 2024, Seq1F1B, section 3.2.

    >>> seq1f1b(2, (2, 2)).programs[1]
    (F1(0,0), F1(0,1), BW1(0,1), F1(1,0), BW1(0,0), F1(1,1), BW1(1,1), BW1(1,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("seq1f1b", num_chunks, 1)
    check_count("reach", reach)
    return alternate_slices("seq1f1b", num_ranks, num_slices, reach=reach)
