"""Patterns of a plan: the choices of layers by name, equal ones once. Needs no torch."""

from collections.abc import Sequence

from recipes.plan.choice_text import choice_text
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.node_names import name_pattern
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.stage_plan import ParameterPlacement, Pattern, placements_text

Runs = tuple[tuple[int, int, str], ...]


def patterns_of(
    chain: LayerChain, solutions: Sequence[StageSolution]
) -> tuple[dict[str, Pattern], list[Runs]]:
    """All patterns by name, and for every stage its runs of layers with the pattern of each."""
    named: dict[str, Pattern] = {}
    stages: list[Runs] = []
    for solution in solutions:
        runs: list[tuple[int, int, str]] = []
        for place, layers in enumerate(solution.reduced.stands_for):
            pattern = _pattern(chain, solution, place)
            name = next((name for name, other in named.items() if other == pattern), "")
            if not name:
                name = _letters(len(named))
                named[name] = pattern
            if runs and runs[-1][2] == name:
                runs[-1] = (runs[-1][0], layers[-1] + 1, name)
            else:
                runs.append((layers[0], layers[-1] + 1, name))
        stages.append(tuple(runs))
    return named, stages


def _pattern(chain: LayerChain, solution: StageSolution, place: int) -> Pattern:
    reduced = solution.reduced
    template = chain.sequence[reduced.stands_for[place][0]]
    choices: dict[str, str] = {}
    lies: dict[int, list[str]] = {}  # value of a parameter, value of its gradient
    found: dict[str, ParameterPlacement] = {}
    graph = reduced.graph
    for at, (of, number) in enumerate(reduced.origins):
        if of != place:
            continue
        node, strategy = graph.nodes[at], solution.strategies[at]
        choices[reduced.name(at)] = choice_text(node.rule, strategy.choices)
        if node.role in ("parameter", "accumulate"):
            lies[node.outputs[0]] = [placements_text(strategy.outputs[0])]
        elif node.role == "update":
            parameter, gradient = node.inputs[:2]
            update = placements_text(strategy.outputs[0])
            original = chain.layers[template].graph.nodes[number]
            name = name_pattern(_parameter_name(chain, template, number), original.block)
            found[name] = ParameterPlacement(lies[parameter][0], lies[gradient][0], update)
    return Pattern(choices, found)


def _parameter_name(chain: LayerChain, template: int, update: int) -> str:
    graph = chain.layers[template].graph
    return graph.values[graph.nodes[update].inputs[0]].name


def _letters(number: int) -> str:
    """A, B, ..., Z, AA, AB, ...

    >>> _letters(0), _letters(27)
    ('A', 'AB')
    """
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text
