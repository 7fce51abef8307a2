"""Reductions, pools, and what needs the whole of a dim: softmax, sorts, scans."""

from collections.abc import Sequence
from typing import Any

from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace.editing import aten
from recipes.plan.trace.node_tensors import Make, dim_of, dims_of, keeps_dim, results_of


def _reduce(kind: rules.Reduction) -> Make:
    def make(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
        itemsize = results_of(node)[0].element_size()
        return rules.reduce_rule(
            inputs[0], dims_of(node), keepdim=keeps_dim(node), kind=kind, itemsize=itemsize,
            num_outputs=len(outputs),
        )  # fmt: skip

    return make


def _reduce_all(kind: rules.Reduction) -> Make:
    return lambda node, inputs, outputs: rules.reduce_rule(
        inputs[0], None, kind=kind, itemsize=results_of(node)[0].element_size()
    )


def _pool(linear: Sequence[Sequence[int]] = ()) -> Make:
    return lambda node, inputs, outputs: rules.pool_rule(inputs, outputs, linear=linear)


def _softmax(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.softmax_rule(inputs[0], dim_of(node, 1))


def _softmax_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.softmax_backward_rule(inputs[0], dim_of(node, 2))


def _sorted(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    at = 2 if node.target in (aten.topk.default, aten.sort.stable) else 1
    return rules.along_dim_rule(inputs[0], [dim_of(node, at, -1)], num_outputs=len(outputs))


REDUCTIONS: dict[Any, Make] = {
    aten.sum.dim_IntList: _reduce("sum"),
    aten.sum.default: _reduce_all("sum"),
    aten.amax.default: _reduce("max"),
    aten.amin.default: _reduce("max"),
    aten.any.dim: _reduce("max"),
    aten.any.default: _reduce_all("max"),
    aten.max.default: _reduce_all("max"),
    aten.prod.dim_int: _reduce("whole"),
    aten.argmax.default: _reduce("whole"),
    aten.max.dim: _reduce("whole"),
    aten.logsumexp.default: _reduce("whole"),
    aten.cumsum.default: lambda node, i, o: rules.cumsum_rule(i[0], dim_of(node, 1)),
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten.topk.default: _sorted,
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted,
    aten.max_pool2d_with_indices.default: _pool(),
    aten.max_pool2d_with_indices_backward.default: _pool([(0,)]),
    aten.avg_pool2d.default: _pool([(0,)]),
    aten.avg_pool2d_backward.default: _pool([(0,)]),
    aten._adaptive_avg_pool2d.default: _pool([(0,)]),
    aten._adaptive_avg_pool2d_backward.default: _pool([(0,)]),
    aten.upsample_nearest2d.default: _pool([(0,)]),
    aten.upsample_bilinear2d.default: _pool([(0,)]),
}
