"""The strategies that Alpa looked at in its published rows."""

from benches.alpa_runs import Run
from blocks.sharding import Mesh, OpGraph, OpNode, Strategy, strategies
from blocks.sharding.intra_op.pose import Allowed
from blocks.sharding.strategy import REPLICATE


def allowed_of(run: Run, stage: int, graph: OpGraph, mesh: Mesh) -> Allowed:
    """What Alpa looked at: no tensor is cut along both axes by one of its dims; the batch along the
    first axis only where it was forced to; what a restriction leaves to parameters.

    Nor is the sequence cut: to the compiler a product's rows are the batch and the sequence in one
    dim, of which only the outer part can be cut. Gradients of a batch that is cut are all summed at
    once, at the end: its combiner of collectives has no threshold, so that all of them are held
    whole until then.
    """
    pinned = bool(run.forced) and run.forced[stage]
    batch = {id(node): factor for node, factor in dim_factors(graph, 0).items()}
    if run.model.family != "wide_resnet":
        sequence = {id(node): factor for node, factor in dim_factors(graph, 1).items()}
    else:
        sequence = {}
    divisible = {
        id(node)
        for node in graph.nodes
        if node.role == "parameter" and len(strategies(node.rule, mesh)) > 1
    }

    def summed(axis: str) -> bool:
        return mesh.size(axis) > 1 and bool(run.restriction or (pinned and axis == "data"))

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        choices = strategy.choices
        cuts = [choice for choice in choices if choice >= 0]
        if len(set(cuts)) < len(cuts):
            return False
        if node.role == "parameter" and run.restriction:
            cut = run.restriction == "zero3" and id(node) in divisible
            return bool(cuts) == cut
        if node.role == "update" and run.restriction == "data":
            return not cuts
        if node.role == "accumulate":
            cut = zip(mesh.axes, choices, strict=True)
            return all(c < REPLICATE for axis, c in cut if summed(axis))
        if node.role != "op":
            return True
        factor, inner = batch.get(id(node)), sequence.get(id(node))
        if inner is not None and inner != factor and inner in cuts:
            return False
        for axis, choice in zip(mesh.axes, choices, strict=True):
            if mesh.size(axis) == 1:
                continue
            forced = summed(axis)
            if factor is None:
                if run.restriction and choice >= 0:
                    return False
            elif (forced and choice != factor) or (not forced and pinned and choice == factor):
                return False
        return True

    return allowed


def dim_factors(graph: OpGraph, dim: int) -> dict[OpNode, int]:
    """For every operation that has one the factor that a dim of the inputs has become."""
    carried: dict[int, int] = {}
    found: dict[OpNode, int] = {}
    for node in graph.nodes:
        if node.role == "input" and node.outputs and node.op != "buffer":
            if len(graph.values[node.outputs[0]].shape) > dim:
                carried[node.outputs[0]] = dim
            continue
        if node.role != "op":
            continue
        for value, dims in zip(node.inputs, node.rule.inputs, strict=True):
            at = carried.get(value)
            factor = None if at is None else dims[at]
            if factor is not None and node.rule.factors[factor].kind != "whole":
                found[node] = factor
                for output, made in zip(node.outputs, node.rule.outputs, strict=True):
                    if factor in made:
                        carried[output] = made.index(factor)
                break
    return found
