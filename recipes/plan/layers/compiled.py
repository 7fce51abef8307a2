"""``compiled``: a step as a compiler runs it, which fuses elementwise operations. No torch.

Without it every operation reads its inputs from memory and writes its outputs there, as executed
one by one. A compiler makes one kernel of elementwise operations that follow one another, and what
is between them never reaches memory; views move nothing at all.
"""

import dataclasses

from blocks.sharding import OpGraph, OpNode, TensorValue
from blocks.sharding.op_graph import Storage

VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        *("reshape.default", "permute.default", "expand.default", "slice.Tensor", "select.int"),
        *("view.default", "unsqueeze.default", "squeeze.dim", "transpose.int", "unbind.int"),
    )
)
"""Operations whose results lie where what they read lies."""


def compiled(graph: OpGraph) -> OpGraph:
    """The same graph with the storage of every value as a compiler leaves it.

    Results of views are views. Results of elementwise operations are nowhere where all that read
    them are elementwise operations or sums in the same phase of the same block: those compute them
    for themselves. All else keeps memory of its own.
    """
    storage: list[Storage] = ["own"] * len(graph.values)
    source = list(range(len(graph.values)))
    for node in graph.nodes:
        if node.op in VIEWS and len(node.inputs) == 1:
            for value in node.outputs:
                source[value] = source[node.inputs[0]]
                storage[value] = "view"
    readers: list[list[OpNode]] = [[] for _ in graph.values]
    for node in graph.nodes:
        if node.op in VIEWS and len(node.inputs) == 1:
            continue
        for value in node.inputs:
            readers[source[value]].append(node)
    for value, at in enumerate(graph.maker):
        maker, after = graph.nodes[at], readers[value]
        if storage[value] == "own" and _elementwise(maker) and after:
            place = (maker.phase, maker.block)
            if all((one.phase, one.block) == place and _fuses(one) for one in after):
                storage[value] = "none"
    for value, base in enumerate(source):
        if storage[base] == "none":
            storage[value] = "none"
    values = tuple(map(_stored, graph.values, storage))
    return dataclasses.replace(graph, values=values)


def _stored(value: TensorValue, storage: Storage) -> TensorValue:
    return dataclasses.replace(value, storage=storage)


def _elementwise(node: OpNode) -> bool:
    """Whether every element it makes is made of one element of each input."""
    kinds = {factor.kind for factor in node.rule.factors}
    made = node.role == "op" and len(node.outputs) == 1 and not node.rule.flops_per_point
    return made and kinds <= {"parallel"}


def _fuses(node: OpNode) -> bool:
    """Whether its kernel may compute what it reads: it reads each element once."""
    kinds = {factor.kind for factor in node.rule.factors}
    made = node.role == "op" and not node.rule.flops_per_point and len(node.outputs) == 1
    return made and kinds <= {"parallel", "sum", "max"}
