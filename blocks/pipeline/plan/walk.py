"""Times of an order: every rank runs its actions in turn, each as soon as its input is there.

The arithmetic is that of ``simulate``, on numbers instead of records. Needs no torch.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from blocks.pipeline.plan.merge import SLACK
from blocks.pipeline.plan.step_graph import StepGraph

INFINITY = float("inf")


class Walk(NamedTuple):
    """What an order comes to.

    makespan_s: infinite where ranks wait for one another for ever.
    ends: when the last backward of every sequence at stage 0 ends.
    """

    makespan_s: float
    ends: list[float]


def walk(graph: StepGraph, words: Sequence[tuple[int, ...]]) -> Walk:
    """Times of programs without weight gradients of their own."""
    seconds, depends, latency = graph.seconds, graph.depends, graph.latency
    arrived = [INFINITY] * (2 * graph.size)
    arrived.append(0.0)  # what an action without a need asks for, at index -1
    again = graph.size if graph.recomputes else 0
    clock = [0.0] * len(words)
    at = [0] * len(words)
    left, moved = sum(map(len, words)), True
    while left and moved:
        moved = False
        for rank, word in enumerate(words):
            begin = index = at[rank]
            now = clock[rank]
            for number in word[begin:] if begin else word:
                ready = arrived[depends[number]]
                if again and number >= again:
                    if ready == INFINITY:
                        break
                    now += seconds[number + again]
                if ready > now:
                    if ready == INFINITY:
                        break
                    now = ready
                now += seconds[number]
                arrived[number] = now + latency[number]
                index += 1
            if index > begin:
                moved = True
                left -= index - begin
                at[rank], clock[rank] = index, now
    return Walk(INFINITY if left else max(clock), _ends(graph, arrived))


def _ends(graph: StepGraph, arrived: list[float]) -> list[float]:
    slices = graph.costs.num_slices
    return arrived[graph.size + slices - 1 : graph.size + graph.per_stage : slices]


def walk_filling(
    graph: StepGraph,
    words: Sequence[tuple[int, ...]],
    cap: int | float,
    max_pending: Sequence[float],
    slack: float,
) -> tuple[Walk, list[list[int]], list[float]]:
    """Times of programs whose weight gradients fill the waits, the programs and their peak bytes.

    Where a rank would wait it takes up the oldest weight gradients put aside as long as they delay
    it by no more than ``slack`` of their time; it also takes one up where ``cap`` leaves no room
    or more than ``max_pending`` of its rank are put aside.
    """
    seconds, depends, latency, size = graph.seconds, graph.depends, graph.latency, graph.size
    need, change = graph.need, graph.change
    recomputes, limit = graph.recomputes, cap * (1 + SLACK)
    arrived = [INFINITY] * (2 * size)
    arrived.append(0.0)
    num_ranks = len(words)
    clock, live, peaks = ([0.0] * num_ranks for _ in range(3))
    at = [0] * num_ranks
    programs: list[list[int]] = [[] for _ in words]
    aside: list[deque[int]] = [deque() for _ in words]
    left, moved = sum(map(len, words)), True
    while left and moved:
        moved = False
        for rank, word in enumerate(words):
            begin = index = at[rank]
            now, held, peak = clock[rank], live[rank], peaks[rank]
            program, pending, most = programs[rank], aside[rank], max_pending[rank]
            for number in word[begin:] if begin else word:
                ready = arrived[depends[number]]
                if ready == INFINITY:
                    break
                backward = number >= size
                again = recomputes and backward and seconds[number + size]
                wanted = need[number] + (need[number + size] if again else 0.0)
                while pending:
                    weight = pending[0]
                    waits = now + (1 - slack) * seconds[weight] + again <= ready
                    if not (waits or held + wanted > limit or len(pending) > most):
                        break
                    pending.popleft()
                    program.append(weight)
                    now += seconds[weight]
                    held += change[weight]
                if again:
                    program.append(number + size)
                    now += again
                    held += change[number + size]
                if held + need[number] > peak:
                    peak = held + need[number]
                if ready > now:
                    now = ready
                now += seconds[number]
                arrived[number] = now + latency[number]
                held += change[number]
                program.append(number)
                if backward:
                    pending.append(number + 2 * size)
                index += 1
            if index > begin:
                moved = True
                left -= index - begin
                at[rank], clock[rank], live[rank], peaks[rank] = index, now, held, peak
    for rank, pending in enumerate(aside):
        programs[rank] += pending
        for weight in pending:
            clock[rank] += seconds[weight]
    return Walk(INFINITY if left else max(clock), _ends(graph, arrived)), programs, peaks
