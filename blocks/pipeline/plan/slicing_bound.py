"""``slicing_bound``: seconds below which no cut of the sequences gets. Needs no torch.

Into however many slices a sequence is cut, its tokens and pairs of tokens are the same, and the
fixed costs only add up; so the work of M slices is bounded in closed form. With one stage a rank
and all ranks alike the costliest slice also has to come through the ranks ahead before the last
one has its first backward, and, where backwards are whole, through them again after its last
backward of the last sequence (see ``order_bound``). The costliest of M slices takes at least the
mean: many slices cost work, few cost waiting, and the bound is the best of that trade.
"""

from collections.abc import Sequence

from blocks.pipeline.cost import CostSurface
from blocks.pipeline.slice_time import SliceTime


def slicing_bound(
    costs: Sequence[CostSurface],
    seq_len: int,
    num_sequences: int,
    num_slices: Sequence[int],
    *,
    granularity: int = 1,
    num_chunks: int = 1,
    splits_weights: bool = False,
) -> float:
    """Seconds no cut into one of ``num_slices`` numbers of slices beats, in any order.

    Args:
        costs: of all layers of every rank.
        num_slices: how many slices there may be.
        granularity: bounds are multiples of it.
        num_chunks: stages a rank's layers are cut into.
        splits_weights: whether weight gradients may be actions of their own.
    """
    alike = num_chunks == 1 and all(cost == costs[0] for cost in costs)

    def bound(count: int) -> float:
        per_rank = [sum(_passes(cost, seq_len, count, granularity)) for cost in costs]
        busy = num_sequences * max(per_rank)
        if not alike:
            return busy
        forward, backward, weight = _passes(costs[0], seq_len, count, granularity)
        once = forward / count + costs[0].latency_s
        again = 0.0 if splits_weights else (backward + weight) / count + costs[0].latency_s
        return busy + (len(costs) - 1) * (once + again)

    return float(min(bound(count) for count in num_slices))


def _passes(cost: CostSurface, seq_len: int, count: int, granularity: int) -> list[float]:
    times = (cost.forward, cost.input_gradient, cost.weight_gradient)
    return [float(_work(time, seq_len, count, granularity)) for time in times]


def _work(time: SliceTime, seq_len: int, count: int, granularity: int) -> float:
    """Seconds of ``count`` slices of one sequence at least."""
    even = seq_len * seq_len / count
    # The most uneven cut has all but one slice of the least length; the last may be yet shorter.
    longest = max(0, seq_len - max(0, count - 2) * granularity)
    uneven = longest**2 + (count - 1) * granularity**2
    inside = time.per_square - time.per_pair / 2
    squares = even if inside >= 0 else max(uneven, even)
    starts = granularity * count * (count - 1) / 2
    return (
        count * time.fixed
        + time.per_token * seq_len
        + time.per_floor * max(seq_len, count * time.floor)
        + time.per_prefix * starts
        + time.per_pair * seq_len * seq_len / 2
        + inside * squares
    )
