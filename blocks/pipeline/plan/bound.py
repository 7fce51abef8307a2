"""``order_bound``: seconds below which no order of given slices gets. Needs no torch.

What holds for every order in which each stage takes sequences in turn, forwards with slices
ascending and backwards with slices descending, follows from three stretches of time on one rank
that never overlap, in each of which it must be idle.

- *Head*: until its last forward of the first sequence ends. That cannot be before the slices have
  come through the ranks ahead (a flow line), and of backwards none can have run.
- *Tail*: from the start of its first backward of the last sequence to the end of the step; the
  head of the step read backwards. Weight gradients of their own can fill it, so there it is void.
- *Window* of a sequence: from the end of its last forward to the start of its first backward, in
  which its last slice travels to the last rank and back. Meanwhile the rank has the whole sequence
  in memory, so that all it can do is backwards of earlier sequences that were live beside it and
  forwards of later ones that fit beside it. Windows of sequences s and s + k cannot overlap where
  the memory does not hold k + 1 sequences.

The step takes as long as the rank computes and idles there, and no less than the first sequence's
way through all stages and back. With chunks, where a rank's streams interleave freely, only
that way, the work, and the wait for the first slice count.
"""

from collections.abc import Sequence

from blocks.pipeline.plan.merge import SLACK
from blocks.pipeline.plan.step_costs import StepCosts, Table


def order_bound(
    costs: StepCosts, num_sequences: int, cap: int | float, *, likely: bool = False
) -> float:
    """Seconds no order of these slices under ``cap`` bytes per rank can beat.

    Holds for merges of the streams the module's text names, wherever their recomputations and
    weight gradients are put.

    Args:
        likely: take it that weight gradients put aside before a window do not fill it. No bound
            then, but nearer to what orders come to.
    """
    down = _flow(costs.forward, [costs.send_forward[0], *costs.send_forward])
    # Read in reverse, backwards go from the first stage to the last with slices ascending.
    up = _flow(costs.backward, costs.send_backward)
    bounds = [down[-1] + up[-1]]
    for rank in range(costs.num_ranks):
        busy = num_sequences * costs.busy_s(rank)
        if costs.num_chunks > 1:
            head, tail, idle = _way_in(costs, rank), 0.0, 0.0
        else:
            again = sum(costs.recompute[rank])
            head = max(0.0, down[rank] - sum(costs.forward[rank]) - again)
            tail = max(0.0, up[rank] - sum(costs.backward[rank]) - again)
            idle = _windows(costs, rank, num_sequences, cap, likely)
        bounds.append(busy + head + (0.0 if costs.splits_weights else tail) + idle)
    return max(bounds)


def _flow(seconds: Table, arrival: Sequence[Sequence[float]]) -> list[float]:
    """When the last slice leaves each stage if nothing else runs there.

    Args:
        arrival: seconds a slice takes to get to a stage from the one before.
    """
    left = [0.0] * len(seconds[0])
    out = []
    for stage, row in enumerate(seconds):
        free = 0.0
        for i, time in enumerate(row):
            ready = left[i] + (arrival[stage][i] if stage else 0.0)
            left[i] = free = max(free, ready) + time
        out.append(free)
    return out


def _way_in(costs: StepCosts, rank: int) -> float:
    """Seconds until the first slice gets to ``rank``."""
    return float(sum(costs.forward[q][0] + costs.send_forward[q][0] for q in range(rank)))


def _windows(
    costs: StepCosts, rank: int, num_sequences: int, cap: int | float, likely: bool
) -> float:
    """Seconds ``rank`` idles in windows that do not overlap."""
    last = costs.num_slices - 1
    away = range(rank + 1, costs.num_stages)
    way = 0.0 + sum(costs.send_forward[q - 1][last] + costs.forward[q][last] for q in away)
    way += sum(costs.backward[q][last] + costs.send_backward[q][last] for q in away)
    kept, limit = costs.kept[rank], cap * (1 + SLACK)
    whole = sum(kept)
    apart = num_sequences if not whole else max(1, int(min(num_sequences, limit / whole)))
    beside = limit - whole
    again, split = costs.recompute[rank], costs.weight[rank]
    forwards = [a + b for a, b in zip(costs.forward[rank], again, strict=True)]
    backwards = [sum(x) for x in zip(costs.backward[rank], again, split, strict=True)]
    aside = zip(split, costs.put_aside[rank], strict=True)
    density = max((w / p if p else float("inf")) if w else 0.0 for w, p in aside)
    most = num_sequences if not whole else int(min(num_sequences, beside / whole + 1))

    def idle(earlier: int, later: int) -> float:
        work = _fits(forwards, kept, beside, later) + _fits(backwards, kept, beside, earlier)
        put_aside = earlier * sum(split)
        if density < float("inf"):
            put_aside = min(put_aside, density * beside)
        if likely:
            put_aside = 0.0
        return max(0.0, way - work - put_aside - sum(again))

    seen: dict[tuple[int, int], float] = {}
    found = [0.0] * apart
    for sequence in range(num_sequences):
        earlier, later = sequence, num_sequences - 1 - sequence
        if not any(split):
            earlier = min(earlier, most)
        key = (earlier, min(later, most))
        if key not in seen:
            seen[key] = idle(*key)
        found[sequence % apart] += seen[key]
    return max(found)


def _fits(seconds: Sequence[float], kept: Sequence[float], room: float, sequences: int) -> float:
    """Work on the first slices of up to ``sequences`` sequences, as many as fit in ``room``."""
    work = 0.0
    for _ in range(sequences):
        for time, size in zip(seconds, kept, strict=True):
            room -= size
            if room < 0:
                return work
            work += time
    return work
