"""Lookups: embedding, gather, scatter, index."""

from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace.editing import argument, aten
from recipes.plan.trace.node_tensors import Make, dim_of, is_zero, whole_rule


def _embedding_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.embedding_backward_rule(inputs[0], outputs[0][0])


def _scatter(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    zeros = is_zero(argument(node, 0))
    if len(inputs) == 2:  # of one value
        return rules.along_dim_rule(inputs[0], range(len(inputs[0])), num_inputs=2)
    return rules.scatter_rule(inputs[0], inputs[1], dim_of(node, 1), onto_zeros=zeros)


def _index(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    places: Any = argument(node, 1)
    at = [dim for dim, index in enumerate(places) if index is not None]
    indices = inputs[1:]
    if any(one.meta["val"].dtype == torch.bool for one in places if one is not None):
        return whole_rule(inputs, outputs)
    if len(at) == 1:
        return rules.index_rule(inputs[0], indices[0], at[0])
    shapes = iter(indices)
    every = [next(shapes) if index is not None else None for index in places]
    return rules.index_many_rule(inputs[0], every, outputs[0])


def _index_put(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    places: Any = argument(node, 1)
    adds = len(node.args) > 3 and bool(argument(node, 3))
    at = [dim for dim, index in enumerate(places) if index is not None]
    plain = len(at) == 1 and places[at[0]].meta["val"].dtype != torch.bool
    rest = [size for dim, size in enumerate(inputs[0]) if dim not in at]
    if plain and adds and len(inputs) == 3 and len(inputs[2]) == len(inputs[1]) + len(rest):
        zeros = is_zero(argument(node, 0))
        return rules.index_add_rule(inputs[0], inputs[1], at[0], onto_zeros=zeros)
    return whole_rule(inputs, outputs)


LOOKUPS: dict[Any, Make] = {
    aten.embedding.default: lambda node, i, o: rules.embedding_rule(*i),
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.gather.default: lambda node, i, o: rules.gather_rule(i[0], i[1], dim_of(node, 1)),
    aten.scatter.src: _scatter,
    aten.scatter_add.default: _scatter,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
}
