"""``interleaved``: one forward, one backward, several chunks of the model on every rank."""

from collections.abc import Iterator, Sequence

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._alternate import alternate, one_by_one, rounds
from blocks.pipeline.schedules._build import Step, by_slice, check_sizes, expand, looped


def interleaved(num_ranks: int, num_slices: Sequence[int], *, num_chunks: int = 1) -> Schedule:
    """Rounds of P sequences pass chunk after chunk; forwards and backwards alternate.

    With v chunks on each of P ranks, S sequences of one slice, S a multiple of P, and the forward
    of a rank's whole part F, its backward BW, each rank idles (P-1)(F+BW)/v, a bubble of
    (P-1)/(vS+P-1). Rank 0 keeps min((v-1)P + 2(P-1) + 1, vS) chunks of activations: for v > 1
    P(1 + (P-1)/(Pv)) sequences' worth. A round at the end that is not full is run as a full one
    with some missing. One chunk is ``one_f_one_b``.

    Args:
        num_ranks: pipeline ranks.
        num_slices: token slices of every sequence; a sequence goes through as a run of them.
        num_chunks: stages on each rank.

    Raises:
        ValueError: a size below one.

    Reference: Narayanan et al. 2021, Efficient large-scale language model training on GPU
    clusters using Megatron-LM, section 2.2.

    >>> interleaved(2, (1, 1), num_chunks=2).programs[1]
    (F1(0,0), F1(1,0), F3(0,0), BW3(0,0), F3(1,0), BW3(1,0), BW1(0,0), BW1(1,0))
    """
    check_sizes(num_ranks, num_slices)
    placement = looped(num_ranks, num_chunks)
    padded = range(-(-len(num_slices) // num_ranks) * num_ranks)
    ahead = rounds(padded, num_ranks, range(num_chunks))
    back = rounds(padded, num_ranks, range(num_chunks - 1, -1, -1))

    def program(rank: int) -> Iterator[Step]:
        counts = one_by_one(num_ranks, rank, num_chunks, num_ranks, 1)
        return expand(alternate(ahead, back, counts), num_slices)

    programs = [program(rank) for rank in range(num_ranks)]
    return by_slice("interleaved", placement, num_slices, programs)
