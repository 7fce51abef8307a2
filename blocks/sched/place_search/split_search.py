"""The best split of the devices over buckets."""

from collections.abc import Callable, Sequence

from blocks.sched.place_search.bucket_search import BucketSearch
from blocks.sched.place_search.buckets import Buckets
from blocks.sched.place_search.device_splits import device_splits
from blocks.sched.place_search.trial import Trial, contents
from blocks.sched.place_search.useful import alone_s


def over_splits(
    search: BucketSearch,
    buckets: Buckets,
    num_devices: int,
    max_splits: int,
) -> list[Trial]:
    """Trials of these buckets over several device splits, joined."""
    if len(buckets) == 1:
        return list(search.best(buckets[0], num_devices))
    requests, profiles = search.evaluate.requests, search.memory.profiles
    loads = [sum(requests[m] * alone_s(profiles[m]) for m in bucket) for bucket in buckets]
    splits = device_splits(num_devices, loads, few=max_splits)

    def attained(split: Sequence[int]) -> float:
        pairs = zip(buckets, split, strict=True)
        return sum(search.best(bucket, count)[0].score.attainment for bucket, count in pairs)

    split = _climb([tuple(one) for one in splits], attained)
    joined = [
        group
        for bucket, count in zip(buckets, split, strict=True)
        for group in contents(search.best(bucket, count)[0].placement)
    ]
    return [search.evaluate(joined)]


def _climb(
    splits: Sequence[tuple[int, ...]], attained: Callable[[Sequence[int]], float]
) -> tuple[int, ...]:
    """The best split from the first one on, going to the nearest better one; buckets share
    nothing, so what they attain adds up."""
    at, worth = splits[0], attained(splits[0])
    passed = {at}
    moved = True
    while moved:
        moved = False
        near = sorted(
            (split for split in splits if split not in passed),
            key=lambda split: sum(abs(a - b) for a, b in zip(split, at, strict=True)),
        )
        for split in near[: 2 * len(at)]:
            passed.add(split)
            other = attained(split)
            if other > worth:
                at, worth, moved = split, other, True
                break
    return at
