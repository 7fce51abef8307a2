"""``zb_h1``: 1F1B with weight gradients put off to fill the end, at the memory of 1F1B."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import by_slice, check_chunks, check_sizes, expand
from blocks.pipeline.schedules._split import put_off


def zb_h1(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """Rank p runs P-p sequences forward, then one backward and one forward in turn; its weight
    gradients lag p sequences behind its backwards.

    With S >= P sequences of one slice on P ranks, every forward F, input gradient B and weight
    gradient W alike and W <= B, each rank idles (P-1)(F+B-W): a third of ``one_f_one_b`` where
    F = B = W. No rank keeps anything of more than P sequences, activations or what weight
    gradients wait for.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence; a sequence goes through as a run of them.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Qi et al. 2023, Zero bubble pipeline parallelism, section 2.2.

    >>> zb_h1(2, (1, 1)).programs[1]
    (F1(0,0), B1(0,0), F1(1,0), B1(1,0), W1(0,0), W1(1,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("zb_h1", num_chunks, 1)
    count = len(num_slices)
    programs = [
        expand(put_off(count, num_ahead=num_ranks - rank, lag=rank), num_slices)
        for rank in range(num_ranks)
    ]
    return by_slice("zb_h1", tuple(range(num_ranks)), num_slices, programs)
