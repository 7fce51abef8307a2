"""Group shapes: how the devices of a bucket are cut into groups, and each group's configuration."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

from blocks._checks import check_count
from blocks.sched.profile import Configuration, Profile

MAX_PP = 8
MAX_OP = 4
Shapes = tuple[Configuration, ...]


def configurations_of(
    profiles: Mapping[str, Profile],
    models: Collection[str],
    *,
    max_pp: int = MAX_PP,
    max_op: int = MAX_OP,
) -> tuple[Configuration, ...]:
    """Those that at least one of the models was timed in, within the limits, rising."""
    found = {configuration for model in models for configuration in profiles[model].configurations}
    return tuple(sorted(one for one in found if one.pp <= max_pp and one.op <= max_op))


def powers_of_two(count: int) -> list[int]:
    """The powers of two that add up to ``count``, largest first.

    >>> powers_of_two(13)
    [8, 4, 1]
    """
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]


def group_shapes(num_devices: int, configurations: Collection[Configuration]) -> Iterator[Shapes]:
    """Cuts of the devices into groups of one size in one configuration.

    Devices left over become groups of powers of two, in the configuration of that size whose
    operators are spread most like the others'. Devices for which no configuration is known stay
    idle.

    >>> some = [Configuration(1, 1), Configuration(1, 2), Configuration(2, 1)]
    >>> [" + ".join(map(str, shapes)) for shapes in group_shapes(3, some)]
    ['1 x 1 + 1 x 1 + 1 x 1', '1 x 2 + 1 x 1', '2 x 1 + 1 x 1']
    """
    check_count("num_devices", num_devices)
    for main in sorted(configurations, key=lambda one: (one.num_devices, one)):
        if main.num_devices > num_devices:
            continue
        count, left = divmod(num_devices, main.num_devices)
        rest = [_nearest(size, main, configurations) for size in powers_of_two(left)]
        yield (*((main,) * count), *(one for one in rest if one is not None))


def mixed_shapes(
    num_devices: int, configurations: Collection[Configuration], most: int
) -> list[Shapes]:
    """All cuts of the devices into groups of any configurations that leave no room for one more;
    none where there are more than ``most``.

    >>> some = [Configuration(1, 1), Configuration(1, 2), Configuration(2, 1)]
    >>> [" + ".join(map(str, shapes)) for shapes in mixed_shapes(3, some, 10)]
    ['1 x 2 + 1 x 1', '2 x 1 + 1 x 1', '1 x 1 + 1 x 1 + 1 x 1']
    """
    check_count("num_devices", num_devices)
    check_count("most", most, least=0)
    ordered = sorted(configurations, key=lambda one: (-one.num_devices, one))
    smallest = min((one.num_devices for one in ordered), default=0)
    found = list(itertools.islice(_cuts(num_devices, ordered, smallest), most + 1))
    return found if len(found) <= most else []


def _cuts(left: int, ordered: Sequence[Configuration], smallest: int) -> Iterator[Shapes]:
    if left < smallest:
        yield ()
    if left < smallest or not ordered:
        return
    first = ordered[0]
    for count in reversed(range(left // first.num_devices + 1)):
        for rest in _cuts(left - count * first.num_devices, ordered[1:], smallest):
            yield (*((first,) * count), *rest)


def _nearest(
    size: int, main: Configuration, configurations: Collection[Configuration]
) -> Configuration | None:
    fitting = [one for one in configurations if one.num_devices == size]
    return min(fitting, key=lambda one: (abs(one.op - main.op), one), default=None)
