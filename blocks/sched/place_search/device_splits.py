"""Device splits: how many devices each bucket gets."""

from collections.abc import Iterator, Sequence

from blocks._checks import check, check_count

THRESHOLDS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
FEW = 100


def device_splits(
    num_devices: int, loads: Sequence[float | int], few: int = FEW
) -> list[list[int]]:
    """Splits of the devices over buckets, at least one each, where each bucket's share of devices
    is near its share of the load: within the widest of ``THRESHOLDS`` that leaves fewer than
    ``few`` splits, nearest first. Never empty where there is a device for each bucket.

    >>> device_splits(4, [3, 1])
    [[3, 1], [2, 2], [1, 3]]
    >>> device_splits(8, [1, 1], few=4)
    [[4, 4], [3, 5], [5, 3]]
    """
    check_count("num_devices", num_devices)
    check_count("few", few)
    check(bool(loads) and min(loads) >= 0, "loads", "one of at least 0 for each bucket", loads)
    total = sum(loads)
    shares = [load / total if total else 1 / len(loads) for load in loads]
    if num_devices < len(loads):
        return []
    for threshold in THRESHOLDS:
        bounds = [_bounds(num_devices, share, threshold) for share in shares]
        if _count(num_devices, bounds) < few:
            break
    else:
        bounds = [(1, num_devices)] * len(loads)
        if _count(num_devices, bounds) >= few:
            return [_nearest(num_devices, shares)]
    found = list(_splits(num_devices, bounds))
    found.sort(key=lambda split: _distance(split, num_devices, shares))
    return found or [_nearest(num_devices, shares)]


def _bounds(num_devices: int, share: float, threshold: float) -> tuple[int, int]:
    low = int(-(-(share - threshold) * num_devices // 1))
    return max(1, low), min(num_devices, int((share + threshold) * num_devices))


def _count(num_devices: int, bounds: Sequence[tuple[int, int]]) -> int:
    """Number of splits within the bounds."""
    ways = [1] + [0] * num_devices
    for low, high in bounds:
        ways = [
            sum(ways[max(0, used - high) : max(0, used - low + 1)])
            for used in range(num_devices + 1)
        ]
    return ways[num_devices]


def _splits(num_devices: int, bounds: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    if not bounds:
        if num_devices == 0:
            yield []
        return
    (low, high), rest = bounds[0], bounds[1:]
    least = max(low, num_devices - sum(bound[1] for bound in rest))
    most = min(high, num_devices - sum(bound[0] for bound in rest))
    for first in range(least, most + 1):
        for others in _splits(num_devices - first, rest):
            yield [first, *others]


def _distance(split: Sequence[int], num_devices: int, shares: Sequence[float | int]) -> float:
    pairs = zip(split, shares, strict=True)
    return sum(abs(count / num_devices - share) for count, share in pairs)


def _nearest(num_devices: int, shares: Sequence[float | int]) -> list[int]:
    """One device each, the others one by one to the bucket that lacks most."""
    split = [1] * len(shares)
    for _ in range(num_devices - len(shares)):
        lacking = [share * num_devices - count for share, count in zip(shares, split, strict=True)]
        split[lacking.index(max(lacking))] += 1
    return split
