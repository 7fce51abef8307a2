"""``seq1f1b_interleaved``: one forward, one backward, over token slices and several chunks."""

from collections.abc import Sequence

from blocks._checks import check_count
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import check_sizes
from blocks.pipeline.schedules._slices import alternate_chunks, alternate_slices


def seq1f1b_interleaved(
    num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1
) -> Schedule:
    """Rounds of whole sequences of at least P slices in all pass chunk after chunk.

    With S sequences of M slices, v > 1 chunks on each of P ranks and G = M * ceil(P/M) slices a
    round, S a multiple of G/M, a sequence's forward F and backward BW on a rank cut evenly: each
    rank idles (P-1)(F+BW)/(vM), a bubble of (P-1)/(vSM+P-1), and rank 0 keeps
    ((v-1)G + 2(P-1) + M)/(vM) sequences' worth of activations (P is the usual G, M dividing P).
    One chunk is ``seq1f1b``, one slice ``interleaved``.

    Args:
        num_ranks: pipeline ranks.
        num_slices: token slices of every sequence. Sequences of fewer slices than the largest, and
            a last round that is not full, run as if some were missing.
        num_chunks: stages on each rank.

    Raises:
        ValueError: a size below one.

    Reference: Sun et al. 2024, Seq1F1B, section 3.3.

    >>> seq1f1b_interleaved(1, (2,), num_chunks=2).programs[0][2:6]
    (F1(0,0), F1(0,1), BW1(0,1), BW1(0,0))
    """
    check_sizes(num_ranks, num_slices)
    check_count("num_chunks", num_chunks)
    if num_chunks == 1:
        return alternate_slices("seq1f1b_interleaved", num_ranks, num_slices)
    depth = max(num_slices)
    return alternate_chunks(
        "seq1f1b_interleaved",
        num_ranks,
        num_slices,
        num_chunks,
        depth=depth,
        sequences_a_round=-(-num_ranks // depth),
    )
