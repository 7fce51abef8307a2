"""``gpipe``: all forwards, then all backwards."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import BW, F, by_slice, check_chunks, check_sizes, expand


def gpipe(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """All sequences forward, then all backward, first sequence first.

    With S sequences of one slice, P ranks and every forward F and backward BW alike, each rank
    idles (P-1)(F+BW), a bubble of (P-1)/(S+P-1), and keeps the activations of S sequences.
    With several slices it is ``terapipe``.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Huang et al. 2019, GPipe, section 2.3.

    >>> gpipe(2, (1, 1)).programs[1]
    (F1(0,0), F1(1,0), BW1(0,0), BW1(1,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("gpipe", num_chunks, 1)
    program = [(kind, 0, s) for kind in (F, BW) for s in range(len(num_slices))]
    programs = [expand(program, num_slices) for _ in range(num_ranks)]
    return by_slice("gpipe", tuple(range(num_ranks)), num_slices, programs)
