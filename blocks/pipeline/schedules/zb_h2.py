"""``zb_h2``: 1F1B with weight gradients put off and twice the sequences in flight."""

from collections.abc import Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import by_slice, check_chunks, check_sizes, expand
from blocks.pipeline.schedules._split import put_off


def zb_h2(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """Rank p runs 2(P-p)-1 sequences forward, then one backward and one forward in turn; its
    weight gradients lag up to 2p sequences behind its backwards.

    With S >= 2P-1 sequences of one slice on P ranks, every forward F, input gradient B and weight
    gradient W alike, W <= B and 2W <= F+B, a rank waits (P-1)(F+B-2W) between its first and its
    last action: nothing where F = B = W. Rank p begins p*F late and ends late: the step must not
    wait for all ranks at both ends to profit. Up to 2P-1 sequences are kept, twice that of 1F1B.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence; a sequence goes through as a run of them.
        num_chunks: 1.

    Raises:
        ValueError: a size below one, another number of chunks.

    Reference: Qi et al. 2023, Zero bubble pipeline parallelism, section 2.2.

    >>> zb_h2(2, (1, 1, 1)).programs[0]
    (F0(0,0), F0(1,0), F0(2,0), B0(0,0), W0(0,0), B0(1,0), W0(1,0), B0(2,0), W0(2,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("zb_h2", num_chunks, 1)
    count = len(num_slices)
    spare = max(0, count - num_ranks)
    programs = [
        expand(
            put_off(count, num_ahead=2 * (num_ranks - rank) - 1, lag=rank + min(rank, spare)),
            num_slices,
        )
        for rank in range(num_ranks)
    ]
    return by_slice("zb_h2", tuple(range(num_ranks)), num_slices, programs)
