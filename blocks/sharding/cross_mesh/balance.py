"""``assign``: which of the ranks that hold a part send it, and in which order. Needs no torch."""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from blocks.sharding.cross_mesh.box import Box, num_elements

Balance = Literal["first", "size", "order"]
"""How senders are chosen:

first: the first rank that holds it;
size: the one that has to send the least so far, largest parts first;
order: so that many messages at a time are between ranks that have nothing else to do, then as
    ``size``; the best of some random orders.
"""


class Request(NamedTuple):
    """A part that a rank waits for.

    box: of the whole tensor. senders: ranks that hold it. target: the rank that wants it.
    """

    box: Box
    senders: tuple[int, ...]
    target: int


def assign(
    requests: Sequence[Request], balance: Balance, rng: random.Random, rounds: int
) -> list[tuple[int, int]]:
    """For every request the (place in ``requests``, sender), in the order to send in.

    >>> from blocks.sharding.placement import Run
    >>> requests = [Request((Run(0, 4),), (0, 1), 2), Request((Run(0, 4),), (0, 1), 3)]
    >>> [assign(requests, how, random.Random(0), 1) for how in ("first", "size")]
    [[(0, 0), (1, 0)], [(0, 0), (1, 1)]]
    """
    if balance == "first":
        return [(at, request.senders[0]) for at, request in enumerate(requests)]
    if balance == "size":
        return sorted(_by_size(requests).items())
    best = min((_ordered(requests, rng) for _ in range(rounds)), key=lambda found: found[0])
    return best[1]


def _by_size(requests: Sequence[Request]) -> dict[int, int]:
    load: dict[int, int] = {}
    chosen: dict[int, int] = {}
    for at in sorted(range(len(requests)), key=lambda i: -num_elements(requests[i].box)):
        chosen[at] = _least(requests[at].senders, load)
        load[chosen[at]] = load.get(chosen[at], 0) + num_elements(requests[at].box)
    return chosen


def _least(senders: Sequence[int], load: dict[int, int]) -> int:
    return min(senders, key=lambda rank: (load.get(rank, 0), rank))


def _ordered(
    requests: Sequence[Request], rng: random.Random
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """One random greedy order, with its (elements one after another, most a rank sends)."""
    waiting = list(range(len(requests)))
    rng.shuffle(waiting)
    load: dict[int, int] = {}
    order: list[tuple[int, int]] = []
    length = 0
    while waiting:  # a round: no rank sends or receives twice
        sending: set[int] = set()
        receiving: set[int] = set()
        later, longest = [], 0
        for at in waiting:
            box, senders, target = requests[at]
            idle = [rank for rank in senders if rank not in sending]
            if not idle or target in receiving:
                later.append(at)
                continue
            sender = _least(idle, load)
            sending.add(sender)
            receiving.add(target)
            size = num_elements(box)
            load[sender] = load.get(sender, 0) + size
            longest = max(longest, size)
            order.append((at, sender))
        length += longest
        waiting = later
    return (length, max(load.values(), default=0)), order
