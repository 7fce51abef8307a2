"""``token_zero_bubble``: Seq1F1B whose weight gradients fill the bubbles, sized by their times."""

from collections.abc import Sequence
from fractions import Fraction

from blocks._checks import check
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules._build import check_chunks, check_sizes
from blocks.pipeline.schedules._slices import alternate_slices
from blocks.pipeline.schedules.defer_weights import defer_weights
from blocks.pipeline.simulate import Duration, simulate


def token_zero_bubble(
    num_ranks: int,
    num_slices: Sequence[int],
    *,
    num_chunks: int = 1,
    duration: Duration | None = None,
    max_kept: int | None = None,
) -> Schedule:
    """The order of ``seq1f1b`` with backwards split and weight gradients where a rank would wait.

    Only the linear layers have weights: the weight gradient of a slice takes as long as its length
    says, whatever its prefix, while forward and input gradient grow with the prefix by attention.
    So gaps differ from slice to slice, and which weight gradient goes where is decided from
    ``duration`` by running all ranks in time: with weight gradients that never delay
    another action, that may by half their time, and that run whenever a rank would wait. The
    shortest is taken. Weight gradients keep the order of the backwards.

    With S sequences of M slices on P ranks, every F, B and W of a slice alike, W <= B and SM >= P
    slices in all, each rank idles (P-1)(F+B-W) by default, as ``zb_h1`` over slices, and keeps
    something of at most M+P-1 slices, as ``seq1f1b``. Where M+2P-2 may be kept, the order that runs
    two slices ahead for every rank behind is tried too, as ``zb_h2``: with 2W <= F+B its ranks wait
    (P-1)(F+B-2W) between their first and last action.

    Args:
        num_ranks: pipeline ranks, one stage each.
        num_slices: token slices of every sequence, as in ``seq1f1b``.
        num_chunks: 1.
        duration: time of every F, B and W; all alike when None.
        max_kept: slices of which a rank keeps anything, activations or what its weight gradient
            needs; M+P-1 when None. More leave more weight gradients for larger bubbles.

    Raises:
        ValueError: a size below one, another number of chunks, a ``max_kept`` below M+P-1.

    Reference: the order of Sun et al. 2024, Seq1F1B; the split of Qi et al. 2023, Zero bubble
    pipeline parallelism.

    >>> token_zero_bubble(2, (2,)).programs[1]
    (F1(0,0), F1(0,1), B1(0,1), B1(0,0), W1(0,1), W1(0,0))
    """
    check_sizes(num_ranks, num_slices)
    check_chunks("token_zero_bubble", num_chunks, 1)
    depth = max(num_slices)
    least = depth + num_ranks - 1
    kept = least if max_kept is None else max_kept
    check(kept >= least, "max_kept", f"at least M+P-1 = {least} slices", kept)
    times = duration if duration is not None else (lambda action: 1)
    name = "token_zero_bubble"
    tried = []
    for reach in (1, 2):
        if reach == 1 or kept >= depth + 2 * (num_ranks - 1):
            order = alternate_slices(name, num_ranks, num_slices, reach=reach)
            shares = (1, Fraction(1, 2), 0)
            tried += [defer_weights(order, times, kept, share=share) for share in shares]
    return min(tried, key=lambda schedule: simulate(schedule, times).makespan)
