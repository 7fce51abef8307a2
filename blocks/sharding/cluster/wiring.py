"""How the devices of a node are wired, where not every two of them alike. Needs no torch.

A node's lanes are a matrix: how many of a link's equal lanes join each two of its devices. A group
of devices is as fast as the rings that its own lanes close; where they close none, messages pass
through a neighbour and one lane counts.
"""

import functools
import itertools
from collections.abc import Sequence

from blocks._checks import check

Lanes = tuple[tuple[int, ...], ...]
"""For every device of a node the lanes to every other; empty where all are joined alike."""


def check_lanes(lanes: Lanes, num_devices: int) -> None:
    """Refuse what is no matrix of lanes between so many devices."""
    size = range(num_devices)
    ok = not lanes or (
        len(lanes) == num_devices
        and all(len(row) == num_devices and row[at] == 0 for at, row in enumerate(lanes))
        and all(lanes[a][b] == lanes[b][a] >= 0 for a in size for b in size)
    )
    hint = "as many both ways, none from a device to itself"
    check(ok, "lanes", f"{num_devices} rows of {num_devices} counts", lanes, hint)


@functools.lru_cache(maxsize=4096)
def rings(lanes: Lanes, devices: tuple[int, ...]) -> int:
    """Rings through all these devices that share no lane in a direction; at least one.

    Two devices close one with each lane. More of them close two, one each way around, with every
    cycle of lanes.

    >>> square = ((0, 1, 0, 2), (1, 0, 2, 0), (0, 2, 0, 1), (2, 0, 1, 0))
    >>> rings(square, (0, 3)), rings(square, (0, 1, 2, 3)), rings(square, (0, 2))
    (2, 2, 1)
    """
    if len(devices) == 2:
        return max(1, lanes[devices[0]][devices[1]])
    free = [[lanes[a][b] for b in devices] for a in devices]
    return max(1, 2 * _cycles(free, _hamiltonian(free), 0))


def _hamiltonian(free: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Cycles through all devices, each in one direction."""
    found: list[tuple[int, ...]] = []

    def extend(path: tuple[int, ...]) -> None:
        if len(path) == len(free):
            if free[path[-1]][0] and path[1] < path[-1]:
                found.append(path)
            return
        for after in range(1, len(free)):
            if free[path[-1]][after] and after not in path:
                extend((*path, after))

    extend((0,))
    return found


def _cycles(free: list[list[int]], cycles: Sequence[tuple[int, ...]], start: int) -> int:
    """How many of the cycles from ``start`` on can be laid beside one another."""
    most = min(map(sum, free)) // 2
    best = 0
    for at in range(start, len(cycles)):
        if best == most:
            break
        edges = list(itertools.pairwise((*cycles[at], cycles[at][0])))
        if all(free[a][b] for a, b in edges):
            left = [list(row) for row in free]
            for a, b in edges:
                left[a][b] -= 1
                left[b][a] -= 1
            best = max(best, 1 + _cycles(left, cycles, at))
    return best


@functools.lru_cache(maxsize=4096)
def exchange_share(lanes: Lanes, devices: tuple[int, ...]) -> float:
    """Lanes' worth of time for each byte that a device sends where every two of them exchange.

    The part of the devices that has fewest lanes to the others, for what has to cross there,
    bounds an all-to-all, however it is routed.

    >>> exchange_share(((0, 1, 1), (1, 0, 1), (1, 1, 0)), (0, 1, 2))
    0.5
    """
    count = len(devices)
    worst = 0.0
    for size in range(1, count // 2 + 1):
        for part in itertools.combinations(devices, size):
            rest = [device for device in devices if device not in part]
            between = max(1, sum(lanes[a][b] for a in part for b in rest))
            worst = max(worst, len(part) * len(rest) / (count - 1) / between)
    return worst
