"""Algorithm 1 in full: every replica that fits is simulated, the best few states go on."""

from collections.abc import Collection, Iterator

from blocks._checks import check_count
from blocks.sched.place_search.greedy import Groups, Useful, always
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.trial import Evaluator, Trial, contents
from blocks.sched.profile import Configuration


def beam_selection(
    evaluate: Evaluator,
    memory: Memory,
    groups: Groups,
    models: Collection[str],
    *,
    width: int = 3,
    useful: Useful = always,
) -> Trial:
    """The best placement met while states of one more replica each are kept by score.

    Of groups that are equal in configuration and models only one is tried: their placements are
    the same. O(models x groups x replicas x width) simulations.

    Args:
        width: states kept; 1 is plain greedy selection.

    Reference: Li et al., 2023, AlpaServe, section 4.2, algorithm 1.
    """
    check_count("width", width)
    best = evaluate(groups)
    states = [best]
    while states:
        found: dict[object, Trial] = {}
        for state in states:
            for grown in one_more(memory, state, models, useful):
                trial = evaluate(grown)
                found[trial.placement] = trial
        states = sorted(found.values(), key=lambda one: one.score, reverse=True)[:width]
        if states:
            best = max(best, states[0], key=lambda one: one.score)
    return best


def one_more(
    memory: Memory, trial: Trial, models: Collection[str], useful: Useful
) -> Iterator[list[tuple[Configuration, tuple[str, ...]]]]:
    """Every different placement with one more replica."""
    groups = contents(trial.placement)
    seen = set()
    for at, (configuration, hosted) in enumerate(groups):
        if (configuration, hosted) in seen:
            continue
        seen.add((configuration, hosted))
        for model in models:
            if (
                model not in hosted
                and useful(model, configuration)
                and memory.holds(configuration, (*hosted, model))
            ):
                yield [*groups[:at], (configuration, (*hosted, model)), *groups[at + 1 :]]
