"""The order a search must beat: a backward as soon as one can run, else a forward."""

import heapq
from collections.abc import Sequence

from blocks.pipeline import Action, Kind, Schedule


def greedy_order(
    num_ranks: int,
    num_sequences: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    max_live: int,
) -> Schedule:
    """What comes of ranks that never wait while something can run and memory allows it.

    Args:
        forward_s, backward_s: seconds of every slice of a sequence, on every rank.
        max_live: slices a rank may keep at once.
    """
    slices = len(forward_s)
    total = num_sequences * slices
    # By rank: how many inputs of forwards and backwards have come, and how many have run.
    come = [[total] + [0] * (num_ranks - 1), [0] * (num_ranks - 1) + [total]]
    done = [[0] * num_ranks, [0] * num_ranks]
    programs: list[list[Action]] = [[] for _ in range(num_ranks)]
    busy = [False] * num_ranks
    ends: list[tuple[float, int, int]] = []  # time, rank, 0 for a forward and 1 for a backward

    def begin(rank: int, now: float) -> None:
        forwards, backwards = done[0][rank], done[1][rank]
        sequence, back = divmod(backwards, slices)
        own = forwards >= min(total, (sequence + 1) * slices)
        if backwards < come[1][rank] and own:
            piece = slices - 1 - back
            programs[rank].append(Action(Kind.FULL_BACKWARD, rank, 0, sequence, piece))
            heapq.heappush(ends, (now + backward_s[piece], rank, 1))
        elif forwards < come[0][rank] and forwards - backwards < max_live:
            sequence, piece = divmod(forwards, slices)
            programs[rank].append(Action(Kind.FORWARD, rank, 0, sequence, piece))
            heapq.heappush(ends, (now + forward_s[piece], rank, 0))
        else:
            return
        busy[rank] = True

    begin(0, 0.0)
    while ends:
        now, rank, what = heapq.heappop(ends)
        busy[rank] = False
        done[what][rank] += 1
        other = rank - 1 if what else rank + 1
        if 0 <= other < num_ranks:
            come[what][other] += 1
        for woken in (rank, other):
            if 0 <= woken < num_ranks and not busy[woken]:
                begin(woken, now)
    placement = tuple(range(num_ranks))
    return Schedule("greedy", placement, (slices,) * num_sequences, tuple(map(tuple, programs)))
