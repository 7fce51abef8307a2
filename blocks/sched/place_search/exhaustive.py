"""Every placement of few models on few devices: what the search is measured by."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from blocks._checks import check_count, fail
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.trial import Evaluator, Trial
from blocks.sched.profile import Configuration

ENOUGH = 2_000_000


class Exhaustive(NamedTuple):
    """The best of all placements.

    trial: one that attains most.
    placements: different placements there are, but for the numbering of devices.
    simulated: of which the simulator was run on.
    """

    trial: Trial
    placements: int
    simulated: int


class _Option(NamedTuple):
    configuration: Configuration
    models: tuple[str, ...]
    bits: int


def exhaustive_search(
    evaluate: Evaluator,
    memory: Memory,
    models: Collection[str],
    configurations: Collection[Configuration],
    num_devices: int,
    *,
    max_placements: int = ENOUGH,
) -> Exhaustive:
    """The placement that serves most requests, of all there are.

    Groups of equal configuration and models are interchangeable, so placements are multisets of
    groups. Parts that share no model do not touch one another: each connected part is simulated
    alone, once, and the best whole is put together from parts by dynamic programming over
    (models, devices).

    Raises:
        ValueError: more placements than ``max_placements``.
    """
    check_count("num_devices", num_devices)
    check_count("max_placements", max_placements)
    names = sorted(models)
    options = _options(memory, names, configurations, num_devices)
    placements = _count(options, num_devices)
    if placements > max_placements:
        hint = "raise max_placements, or give fewer models, devices or configurations"
        raise fail("placements", f"at most {max_placements:,}", f"{placements:,}", hint)
    before = evaluate.simulated
    parts: dict[tuple[int, int], tuple[int, tuple[_Option, ...]]] = {}
    for chosen in _multisets(options, num_devices):
        if not _connected(chosen):
            continue
        trial = evaluate((one.configuration, one.models) for one in chosen)
        hosted = {model for one in chosen for model in one.models}
        served = sum(evaluate.requests[model] - trial.unserved[model] for model in hosted)
        key = (_union(chosen), sum(one.configuration.num_devices for one in chosen))
        if key not in parts or served > parts[key][0]:
            parts[key] = (served, chosen)
    best = _assembled(parts, (1 << len(names)) - 1, num_devices)
    trial = evaluate((one.configuration, one.models) for one in best)
    return Exhaustive(trial, placements, evaluate.simulated - before)


def count_placements(
    memory: Memory,
    models: Collection[str],
    configurations: Collection[Configuration],
    num_devices: int,
) -> int:
    """Different placements there are, but for the numbering of devices; the empty one included."""
    return _count(_options(memory, sorted(models), configurations, num_devices), num_devices)


def _options(
    memory: Memory,
    names: Sequence[str],
    configurations: Collection[Configuration],
    num_devices: int,
) -> list[_Option]:
    """Every group that can be: a configuration and models that fit together."""
    found = []
    for configuration in sorted(configurations):
        if configuration.num_devices > num_devices:
            continue
        for count in range(1, len(names) + 1):
            for indices in itertools.combinations(range(len(names)), count):
                hosted = tuple(names[index] for index in indices)
                if memory.holds(configuration, hosted):
                    bits = sum(1 << index for index in indices)
                    found.append(_Option(configuration, hosted, bits))
    return found


def _count(options: Sequence[_Option], num_devices: int) -> int:
    ways = [1] + [0] * num_devices
    for option in options:
        size = option.configuration.num_devices
        for used in range(size, num_devices + 1):
            ways[used] += ways[used - size]
    return sum(ways)


def _multisets(
    options: Sequence[_Option], left: int, first: int = 0
) -> Iterator[tuple[_Option, ...]]:
    for at in range(first, len(options)):
        size = options[at].configuration.num_devices
        if size <= left:
            yield (options[at],)
            for others in _multisets(options, left - size, at):
                yield (options[at], *others)


def _union(chosen: Sequence[_Option]) -> int:
    union = 0
    for one in chosen:
        union |= one.bits
    return union


def _connected(chosen: Sequence[_Option]) -> bool:
    """Whether no set of groups shares no model with the others."""
    if len(chosen) == 1:
        return True
    reached, apart = chosen[0].bits, [one.bits for one in chosen[1:]]
    while apart:
        beside = [bits for bits in apart if not bits & reached]
        if len(beside) == len(apart):
            return False
        for bits in apart:
            if bits & reached:
                reached |= bits
        apart = beside
    return True


def _assembled(
    parts: dict[tuple[int, int], tuple[int, tuple[_Option, ...]]], everything: int, devices: int
) -> tuple[_Option, ...]:
    """Parts of different models on at most so many devices that serve most together."""
    best: dict[int, list[tuple[int, tuple[_Option, ...]]]] = {}
    by_bits: dict[int, list[tuple[int, int, tuple[_Option, ...]]]] = {}
    for (bits, used), (served, chosen) in parts.items():
        by_bits.setdefault(bits, []).append((used, served, chosen))
    for models in range(everything + 1):
        lowest = models & -models
        rows: list[tuple[int, tuple[_Option, ...]]] = [(0, ())] * (devices + 1)
        if models:
            rows = list(best[models ^ lowest])
        part = models
        while part:
            if part & lowest:
                for used, served, chosen in by_bits.get(part, ()):
                    for left in range(devices - used + 1):
                        rest = best[models ^ part][left]
                        if served + rest[0] > rows[left + used][0]:
                            rows[left + used] = (served + rest[0], (*chosen, *rest[1]))
            part = (part - 1) & models
        best[models] = rows
    return best[everything][devices][1]
