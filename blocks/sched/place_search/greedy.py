"""Algorithm 1, quick: the most unserved model to the least used group that it fits on."""

from collections.abc import Callable, Collection, Iterable, Sequence

from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.trial import Evaluator, Trial, contents
from blocks.sched.profile import Configuration

Useful = Callable[[str, Configuration], bool]
Groups = Iterable[tuple[Configuration, Sequence[str]]]
Grown = list[tuple[Configuration, tuple[str, ...]]]


def always(model: str, configuration: Configuration) -> bool:
    """Any model may be hosted in any configuration that was timed."""
    return True


def greedy_selection(
    evaluate: Evaluator,
    memory: Memory,
    groups: Groups,
    models: Collection[str],
    *,
    useful: Useful = always,
) -> Trial:
    """The best placement met on the way from ``groups`` to the one where nothing more fits.

    After every simulation one replica is added: of the model with most requests unserved (of
    equals, the one with most requests a replica), on the group with the smallest busy share that
    it fits on (of equals, the one that hosts fewest). Once all requests are served the rest is
    filled up by the same rule without looking at every step. At most one simulation a replica.

    Args:
        models: those to place; groups may host others, which stay.
        useful: whether a model may be hosted in a configuration.

    Reference: Li et al., 2023, AlpaServe, section 4.2, algorithm 1 and its quick heuristic.
    """
    best = trial = evaluate(groups)
    while grown := _grown(evaluate, memory, trial, contents(trial.placement), models, useful):
        if not any(trial.unserved[model] for model in models):
            while more := _grown(evaluate, memory, trial, grown, models, useful):
                grown = more
        trial = evaluate(grown)
        best = max(best, trial, key=lambda one: one.score)
    return best


def _grown(
    evaluate: Evaluator,
    memory: Memory,
    trial: Trial,
    groups: Grown,
    models: Collection[str],
    useful: Useful,
) -> Grown | None:
    """One replica more than ``groups``, as the trial advises; None where nothing fits."""
    replicas = dict.fromkeys(models, 0)
    for _, hosted in groups:
        for model in hosted:
            replicas[model] = replicas.get(model, 0) + 1

    def need(model: str) -> tuple[int, float, str]:
        share = evaluate.requests[model] / replicas[model] if replicas[model] else float("inf")
        return -trial.unserved[model], -share, model

    def use(at: int) -> tuple[float, int, int]:
        return trial.utilisation[at], len(groups[at][1]), at

    least_used = sorted(range(len(groups)), key=use)
    for model in sorted(models, key=need):
        for at in least_used:
            configuration, hosted = groups[at]
            if (
                model not in hosted
                and useful(model, configuration)
                and memory.holds(configuration, (*hosted, model))
            ):
                return [*groups[:at], (configuration, (*hosted, model)), *groups[at + 1 :]]
    return None
