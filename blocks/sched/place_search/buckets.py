"""Model buckets: models that may share groups, so that no short request waits behind a long one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from blocks._checks import check, is_number

THRESHOLD = 0.38
Buckets = tuple[tuple[str, ...], ...]


def latency_classes(
    latency_s: Mapping[str, float | int], threshold: float | int = THRESHOLD
) -> Buckets:
    """Models by rising latency; one that takes more than ``threshold`` longer than the first of a
    class begins the next.

    >>> latency_classes({"a": 0.15, "b": 0.2, "c": 0.24, "d": 0.3})
    (('a', 'b'), ('c', 'd'))
    """
    known = is_number(threshold) and threshold >= 0
    check(known, "threshold", "a number of 0 or more", repr(threshold))
    classes: list[list[str]] = []
    first_s = 0.0
    for model in sorted(latency_s, key=lambda name: (latency_s[name], name)):
        if not classes or latency_s[model] > first_s * (1 + threshold):
            classes.append([])
            first_s = latency_s[model]
        classes[-1].append(model)
    return tuple(tuple(one) for one in classes)


def bucketings(classes: Sequence[Sequence[str]], most: int | None = None) -> Iterator[Buckets]:
    """Every way to make buckets of neighbouring classes, one bucket first, then two, ...

    Args:
        most: buckets at most.

    >>> [[len(bucket) for bucket in buckets] for buckets in bucketings(["ab", "c", "d"])]
    [[4], [2, 2], [3, 1], [2, 1, 1]]
    """
    count = len(classes)
    for num_cuts in range(min(count, most or count)):
        for cuts in itertools.combinations(range(1, count), num_cuts):
            bounds = itertools.pairwise((0, *cuts, count))
            yield tuple(
                tuple(model for one in classes[first:stop] for model in one)
                for first, stop in bounds
            )
