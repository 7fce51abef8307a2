"""``eager_1f1b``: 1F1B with twice the sequences in flight, so that messages have time to travel."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._alternate import alternate, one_by_one
from blocks.pipeline.schedules._build import by_slice, check_chunks, check_sizes, expand


def eager_1f1b(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """Rank p runs 2(P-p)-1 sequences forward, then one backward and one forward in turn.

    Under ``one_f_one_b`` rank p has as many sequences in flight as there are ranks from it to the
    last. A sequence passes all of these and comes back: with messages on the way it comes late, and
    the rank waits in every turn. Here one more sequence is in flight for every rank behind, so that
    messages have the time of a turn to travel. It costs activations: rank p keeps those of
    min(2(P-p)-1, S) sequences.

    Where forwards F and backwards BW are alike on all ranks, it is never slower than
    ``one_f_one_b``, whatever messages take, and takes as long where they take nothing. Where a
    message to the next rank and one back take at most F+BW together, each rank idles (P-1)(F+BW)
    and, once a step, the messages of one sequence over all boundaries there and back. Where ranks
    are not alike it may be faster without messages, too, or slower: forwards that come early delay
    backwards others wait for.

    A sequence of several slices goes through as a run of them. With one slice this is the order of
    ``seq1f1b`` with a ``reach`` of 2.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Zhuang et al. 2023, On optimizing the communication of model parallelism, the section
    on schedules that overlap (eager 1F1B).

    >>> eager_1f1b(2, (1, 1, 1, 1)).programs[0]
    (F0(0,0), F0(1,0), F0(2,0), BW0(0,0), F0(3,0), BW0(1,0), BW0(2,0), BW0(3,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("eager_1f1b", num_chunks, 1)
    units = [(0, s) for s in range(len(num_slices))]
    programs = [
        expand(alternate(units, units, one_by_one(num_ranks, rank, 1, 1, 1, reach=2)), num_slices)
        for rank in range(num_ranks)
    ]
    return by_slice("eager_1f1b", tuple(range(num_ranks)), num_slices, programs)
