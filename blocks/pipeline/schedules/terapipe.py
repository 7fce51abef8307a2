"""``terapipe``: all forwards over token slices, then all backwards."""

import dataclasses
from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import check_chunks, check_sizes
from blocks.pipeline.schedules.gpipe import gpipe


def terapipe(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """All slices of all sequences forward, then backward: sequences first to last, slices of each
    last to first.

    With F_i and BW_i the times of slice i at every stage, the makespan on P ranks is
    sum(F) + sum(BW) + (P-1)(max F + max BW) however unequal the slices are; with equal ones the
    bubble is (P-1)/(N+P-1) for N slices in all. A rank keeps the activations of all sequences.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Li et al. 2021, TeraPipe, section 3.

    >>> terapipe(2, (2,)).programs[1]
    (F1(0,0), F1(0,1), BW1(0,1), BW1(0,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("terapipe", num_chunks, 1)
    return dataclasses.replace(gpipe(num_ranks, num_slices), name="terapipe")
