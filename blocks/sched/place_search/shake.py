"""Large changes: some groups of a placement dissolved and made anew."""

import random
from collections.abc import Collection

from blocks._checks import check_count
from blocks.sched.place_search.greedy import Grown, Useful, always, greedy_selection
from blocks.sched.place_search.local_search import improve
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.trial import Evaluator, Trial, contents
from blocks.sched.profile import Configuration

MOST = 3
"""Groups dissolved at once."""


def shake(
    evaluate: Evaluator,
    memory: Memory,
    trial: Trial,
    models: Collection[str],
    configurations: Collection[Configuration],
    num_devices: int,
    *,
    simulations: int,
    useful: Useful = always,
    seed: int = 0,
) -> Trial:
    """The best of what large changes lead to, from a placement that no small one makes better.

    A round dissolves up to ``MOST`` groups, cuts their devices and idle ones at random, fills the
    new groups by ``greedy_selection`` and goes on with ``improve``. The next round starts from the
    best placement so far. Ends where every request is served. Deterministic for a seed.

    Args:
        simulations: about how many more may be made.

    Reference: Shaw, 1998, "Using Constraint Programming and Local Search Methods to Solve Vehicle
    Routing Problems": large neighbourhoods.
    """
    check_count("simulations", simulations, least=0)
    rng, stop = random.Random(seed), evaluate.simulated + simulations
    for _ in range(simulations):  # rounds that meet nothing new simulate nothing
        left = stop - evaluate.simulated
        if left <= 0 or not any(trial.unserved[model] for model in models):
            break
        groups = dissolved(rng, trial, configurations, num_devices)
        found = greedy_selection(evaluate, memory, groups, models, useful=useful)
        found = improve(
            evaluate,
            memory,
            found,
            models,
            configurations,
            num_devices,
            simulations=left,
            useful=useful,
        )
        trial = max(trial, found, key=lambda one: one.score)
    return trial


def dissolved(
    rng: random.Random, trial: Trial, configurations: Collection[Configuration], num_devices: int
) -> Grown:
    """The groups of a placement, some of them replaced by empty ones of random configurations."""
    groups = contents(trial.placement)
    count = min(len(groups), rng.randint(1, MOST))
    out = set(rng.sample(range(len(groups)), count))
    made = [group for at, group in enumerate(groups) if at not in out]
    free = num_devices - sum(configuration.num_devices for configuration, _ in made)
    while fitting := [one for one in sorted(configurations) if one.num_devices <= free]:
        configuration = rng.choice(fitting)
        made.append((configuration, ()))
        free -= configuration.num_devices
    return made
