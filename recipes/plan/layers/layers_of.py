"""``layers_of``: which layer every operation belongs to. Needs no torch.

Layers are what stages are made of: the repeated blocks of a model, what comes before, between and
after them, each forward with its backward and its parameters.
"""

from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding import OpGraph, OpNode


def layers_of(graph: OpGraph, forward: Sequence[int] | None = None) -> tuple[int, ...]:
    """For every node its layer, counted along the forward pass.

    Forward operations of one repeated block are a layer, with those that its list adds behind it
    (``x = x + block(x)``); so is every other run of operations between blocks; models without
    blocks are cut by ``cluster_layers``. Parameters follow the first layer
    that reads them, gradients and optimizer their parameter, backward operations their forward.
    Values flow up from layer to layer in the forward pass and down in the backward pass.

    Args:
        forward: layer of every node instead, for models without repeated blocks; only those of
            forward operations are looked at, and must not fall along the graph.
    """
    from_inputs = _from_inputs(graph)
    layer = [-1] * len(graph.nodes)
    at_block: dict[int, int] = {}
    at_module: dict[str, int] = {}
    several: set[str] = set()  # modules that are in several layers say nothing
    last, block = -1, None
    inside: set[str] = set()  # modules around those of the block
    for at, node in enumerate(graph.nodes):
        if node.role != "op" or node.phase != "forward" or at in from_inputs:
            continue
        if forward is not None:
            check(forward[at] >= last, f"layer of {node.name}", f"{last} or more", forward[at])
            last = forward[at]
        elif block not in (None, -1) and node.module in inside and _is_light(graph, node):
            pass
        elif node.block not in (block, *at_block) or (node.block == -1 and block != -1):
            last, block = last + 1, node.block
            inside = _around(node.module)
        layer[at] = last
        at_block.setdefault(node.block, last)
        if at_module.setdefault(node.module, last) != last:
            several.add(node.module)
    if forward is None and last == 0 and all(node.block < 0 for node in graph.nodes):
        from recipes.plan.layers.cluster_layers import cluster_layers

        found = cluster_layers(graph, [at for at, number in enumerate(layer) if number >= 0])
        if found is not None:
            return layers_of(graph, found)
    at_block.pop(-1, None)
    at_module = {module: at for module, at in at_module.items() if module not in several}
    _parameters(graph, layer)
    if forward is not None:  # a module may be in several layers
        at_block, at_module = {}, {}
    _backward(graph, layer, from_inputs, at_block, at_module)
    return tuple(max(found, 0) for found in layer)


def _from_inputs(graph: OpGraph) -> set[int]:
    """Operations that depend on inputs alone; every stage that reads them computes them."""
    found: set[int] = set()
    for at, node in enumerate(graph.nodes):
        made = all(graph.maker[value] in found for value in node.inputs)
        if node.role == "input" or (node.role == "op" and made):
            found.add(at)
    return found


def _around(module: str) -> set[str]:
    """The modules that a module is in.

    >>> sorted(_around("model.layers.0"))
    ['', 'model', 'model.layers']
    """
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(len(parts))}


def _is_light(graph: OpGraph, node: OpNode) -> bool:
    """Of no block, without a parameter, element by element: what joins a block to the next."""
    read = {graph.nodes[graph.maker[value]].role for value in node.inputs}
    parallel = all(factor.kind == "parallel" for factor in node.rule.factors)
    return node.block < 0 and parallel and "parameter" not in read


def _parameters(graph: OpGraph, layer: list[int]) -> None:
    for at, node in enumerate(graph.nodes):
        if node.role == "parameter":
            readers = [layer[reader] for reader, _ in graph.readers[node.outputs[0]]]
            layer[at] = min((found for found in readers if found >= 0), default=0)
        elif node.role == "update":
            parameter, gradient = (graph.maker[value] for value in node.inputs[:2])
            layer[at] = layer[gradient] = layer[parameter]
        elif node.role == "output":
            layer[at] = layer[graph.maker[node.inputs[0]]]


def _backward(
    graph: OpGraph,
    layer: list[int],
    from_inputs: set[int],
    at_block: dict[int, int],
    at_module: dict[str, int],
) -> None:
    backward = [
        at
        for at, node in enumerate(graph.nodes)
        if node.role == "op" and node.phase == "backward" and at not in from_inputs
    ]
    makers = [
        [m for value in node.inputs if (m := graph.maker[value]) not in from_inputs]
        for node in graph.nodes
    ]
    below = [[m for m in found if graph.nodes[m].phase == "forward"] for found in makers]
    above = [[m for m in found if graph.nodes[m].phase == "backward"] for found in makers]
    sums: set[int] = set()  # of gradients, from readers in several layers
    for at in reversed(backward):
        node = graph.nodes[at]
        wanted = at_block.get(node.block, at_module.get(node.module) if node.module else None)
        if wanted is None:
            readers = [reader for value in node.outputs for reader, _ in graph.readers[value]]
            wanted = max((layer[other] for other in (*readers, *below[at])), default=0)
            if len(above[at]) > 1 and not below[at]:
                sums.add(at)
        layer[at] = wanted
    for at in backward:  # forward values only come from below, gradients only from above
        if at in sums:  # as soon as can be: one sum goes further, not all its addends
            layer[at] = min(layer[maker] for maker in above[at])
        lowest = max(layer[other] for other in (at, *below[at]))
        layer[at] = min([lowest, *(layer[maker] for maker in above[at])])
