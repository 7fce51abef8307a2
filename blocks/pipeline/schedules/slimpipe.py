"""``slimpipe``: the order of SlimPipe, one sequence after the other through all chunks."""

from collections.abc import Sequence

from blocks._checks import check_count
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import check_sizes
from blocks.pipeline.schedules._slices import alternate_chunks, alternate_slices


def slimpipe(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """All slices of one sequence pass chunk after chunk; forwards and backwards alternate.

    Meant for slices of equal length, as many as P or a multiple. With S sequences of M such slices
    and v > 1 chunks on each of P ranks, a sequence's forward F and backward BW on a rank cut
    evenly, each rank idles (P-1)(F+BW)/(vM), a bubble of (P-1)/(vSM+P-1), and rank 0 keeps
    1 + 2(P-1)/(vM) sequences' worth of activations: one sequence as M grows. Equal lengths are not
    equal costs; what evens them out there, attention handed from heavy to light ranks, is a matter
    of the stages and not of the order.

    Args:
        num_ranks: pipeline ranks.
        num_slices: token slices of every sequence. Other counts than multiples of P run as if
            the last ones were missing.
        num_chunks: stages on each rank; one is ``seq1f1b``.

    Raises:
        ValueError: a size below one.

    Reference: Li et al. 2025, SlimPipe, section 4.

    >>> slimpipe(1, (2, 2), num_chunks=2).programs[0][:5]
    (F0(0,0), F0(0,1), F1(0,0), F1(0,1), BW1(0,1))
    """
    check_sizes(num_ranks, num_slices)
    check_count("num_chunks", num_chunks)
    if num_chunks == 1:
        return alternate_slices("slimpipe", num_ranks, num_slices)
    depth = -(-max(num_slices) // num_ranks) * num_ranks
    return alternate_chunks(
        "slimpipe", num_ranks, num_slices, num_chunks, depth=depth, sequences_a_round=1
    )
