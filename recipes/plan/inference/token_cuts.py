"""``cuts_weights``: strategies that cut weights and never the batch. Needs no torch."""

from collections.abc import Callable

from blocks.sharding import Mesh, OpGraph, OpNode, Strategy, strategies


def token_factors(graph: OpGraph) -> dict[str, frozenset[int]]:
    """By name of a node the factors that run over rows or tokens of the inputs."""
    along: list[set[int]] = [set() for _ in graph.values]  # dims of every value that do
    found: dict[str, frozenset[int]] = {}
    for node in graph.nodes:
        if node.role == "input" and node.op != "buffer":
            shapes = node.rule.outputs
            along[node.outputs[0]] = set(range(len(shapes[0])))
            found[node.name] = frozenset(f for f in shapes[0] if f is not None)
            continue
        factors = {
            factor
            for value, dims in zip(node.inputs, node.rule.inputs, strict=True)
            for dim, factor in enumerate(dims)
            if factor is not None and dim in along[value]
        }
        for value, dims in zip(node.outputs, node.rule.outputs, strict=True):
            along[value] = {dim for dim, factor in enumerate(dims) if factor in factors}
        found[node.name] = frozenset(factors)
    return found


def cuts_weights(graph: OpGraph, mesh: Mesh) -> Callable[[OpNode, Strategy], bool]:
    """Whether a strategy cuts weights alone: rows and tokens stay whole, as those who cut them copy
    the weights, and what reads a matrix of weights is cut wherever it can be. Copies of a model
    are the business of its placement.

    Reference: Li et al. 2023, AlpaServe, section 4.1.
    """
    tokens = token_factors(graph)
    parameters = {
        node.outputs[0]
        for node in graph.nodes
        if node.role == "parameter" and len(graph.values[node.outputs[0]].shape) > 1
    }

    def cut(node: OpNode, strategy: Strategy) -> bool:
        return all(at >= 0 and at not in tokens[node.name] for at in strategy.choices)

    must = {
        node.name
        for node in graph.nodes
        if parameters & set(node.inputs)
        and any(cut(node, strategy) for strategy in strategies(node.rule, mesh))
    }

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        if node.name in must:
            return cut(node, strategy)
        return not tokens[node.name] & set(strategy.choices)

    return allowed
