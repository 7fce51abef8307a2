"""Local search: small changes of a placement, kept while they make it better."""

import itertools
from collections.abc import Collection, Iterator

from blocks._checks import check_count
from blocks.sched.place_search.beam import one_more
from blocks.sched.place_search.greedy import Grown, Useful, always, greedy_selection
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.trial import Evaluator, Trial, contents
from blocks.sched.profile import Configuration


def improve(
    evaluate: Evaluator,
    memory: Memory,
    trial: Trial,
    models: Collection[str],
    configurations: Collection[Configuration],
    num_devices: int,
    *,
    simulations: int,
    useful: Useful = always,
) -> Trial:
    """A placement from which no single change is better, or where the simulations ran out.

    Changes: one replica added, dropped, moved, or replaced by another model's; two models swapped
    between groups; a group given another configuration, a group cut into equal ones, or equal ones
    made one, after which free room is filled up by ``greedy_selection``. The first change that is
    better is taken.

    Args:
        simulations: how many more may be made.
    """
    check_count("simulations", simulations, least=0)
    stop = evaluate.simulated + simulations
    better: Trial | None = trial
    while better is not None:
        trial, better = better, None
        for groups in neighbours(memory, trial, models, useful):
            if evaluate.simulated >= stop:
                return trial
            found = evaluate(groups)
            if found.score > trial.score:
                better = found
                break
        if better is not None:
            continue
        for groups in reshaped(memory, trial, configurations, num_devices):
            if evaluate.simulated >= stop:
                return trial
            found = greedy_selection(evaluate, memory, groups, models, useful=useful)
            if found.score > trial.score:
                better = found
                break
    return trial


def neighbours(
    memory: Memory, trial: Trial, models: Collection[str], useful: Useful = always
) -> Iterator[Grown]:
    """Placements that differ in one or two replicas; most unserved models first."""
    wanted = sorted(models, key=lambda model: (-trial.unserved[model], model))
    yield from one_more(memory, trial, wanted, useful)
    groups = contents(trial.placement)
    different = _different(groups)
    for at in different:
        for model in groups[at][1]:
            kept = tuple(name for name in groups[at][1] if name != model)
            for other in wanted:
                if other not in groups[at][1] and _may(memory, groups, at, kept, other, useful):
                    yield _with(groups, {at: (*kept, other)})
            for to in different:
                elsewhere = to != at and model not in groups[to][1]
                if elsewhere and _may(memory, groups, to, groups[to][1], model, useful):
                    yield _with(groups, {at: kept, to: (*groups[to][1], model)})
            yield _with(groups, {at: kept})
    yield from _swaps(memory, groups, different, useful)


def _swaps(memory: Memory, groups: Grown, different: list[int], useful: Useful) -> Iterator[Grown]:
    for index, one in enumerate(different):
        for two in different[index + 1 :]:
            for model in _without(groups[one][1], groups[two][1]):
                for other in _without(groups[two][1], groups[one][1]):
                    left = tuple(name for name in groups[one][1] if name != model)
                    right = tuple(name for name in groups[two][1] if name != other)
                    if _may(memory, groups, one, left, other, useful) and _may(
                        memory, groups, two, right, model, useful
                    ):
                        yield _with(groups, {one: (*left, other), two: (*right, model)})


def reshaped(
    memory: Memory, trial: Trial, configurations: Collection[Configuration], num_devices: int
) -> Iterator[Grown]:
    """Placements where one group is run otherwise or cut into equal ones, or equal ones are made
    one; models that no longer fit are dropped, those with fewest unserved requests first."""
    groups = contents(trial.placement)
    by_size: dict[int, list[Configuration]] = {}
    for configuration in sorted(configurations):
        by_size.setdefault(configuration.num_devices, []).append(configuration)

    def kept(configuration: Configuration, models: Collection[str]) -> tuple[str, ...]:
        chosen: tuple[str, ...] = ()
        for model in sorted(models, key=lambda name: (-trial.unserved[name], name)):
            if memory.holds(configuration, (*chosen, model)):
                chosen = (*chosen, model)
        return chosen

    idle = num_devices - sum(configuration.num_devices for configuration, _ in groups)
    if idle:
        for size in sorted(by_size, reverse=True):
            if size <= idle:
                yield from ([*groups, (other, ())] for other in by_size[size])
    different = _different(groups)
    for at in different:
        configuration, models = groups[at]
        rest = [*groups[:at], *groups[at + 1 :]]
        size = configuration.num_devices
        for other in by_size.get(size, ()):
            if other != configuration:
                yield [*rest, (other, kept(other, models))]
        for smaller in sorted(by_size, reverse=True):
            if smaller >= size or size % smaller:
                continue
            count = size // smaller
            for part in by_size[smaller]:
                yield [*rest, *((part, kept(part, models)) for _ in range(count))]
                yield [*rest, *((part, kept(part, models[one::count])) for one in range(count))]
    for smaller, size in itertools.permutations(sorted(by_size), 2):
        if smaller >= size or size % smaller:
            continue
        for joined in _joinable(trial, smaller, size // smaller):
            rest = [one for at, one in enumerate(groups) if at not in joined]
            union = dict.fromkeys(model for at in joined for model in groups[at][1])
            for other in by_size[size]:
                yield [*rest, (other, kept(other, union))]


def _joinable(trial: Trial, size: int, count: int) -> Iterator[tuple[int, ...]]:
    """Groups of a size that may be made one: any two; of more, those that are about as busy."""
    groups = trial.placement.groups
    of = [at for at, group in enumerate(groups) if group.configuration.num_devices == size]
    if count > 2:
        of.sort(key=lambda at: (trial.utilisation[at], at))
        sets = [tuple(of[at : at + count]) for at in range(len(of) - count + 1)]
    else:
        sets = list(itertools.combinations(of, count))
    known: set[tuple[tuple[Configuration, tuple[str, ...]], ...]] = set()
    for joined in sets:
        same = tuple(sorted((groups[at].configuration, groups[at].models) for at in joined))
        if same not in known:
            known.add(same)
            yield joined


def _different(groups: Grown) -> list[int]:
    """The first of every set of equal groups, and the second, which a swap may need."""
    counts: dict[object, int] = {}
    found = []
    for at, group in enumerate(groups):
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= 2:
            found.append(at)
    return found


def _without(models: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    return [model for model in models if model not in others]


def _may(
    memory: Memory,
    groups: Grown,
    at: int,
    kept: tuple[str, ...],
    model: str,
    useful: Useful,
) -> bool:
    configuration = groups[at][0]
    return useful(model, configuration) and memory.holds(configuration, (*kept, model))


def _with(groups: Grown, changed: dict[int, tuple[str, ...]]) -> Grown:
    return [
        (configuration, changed.get(at, models))
        for at, (configuration, models) in enumerate(groups)
    ]
