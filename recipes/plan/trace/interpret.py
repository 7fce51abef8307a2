"""A traced step run on one device, call by call: what a plan's execution is compared with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from blocks._checks import fail
from recipes.plan.trace.node_tensors import inputs_of
from recipes.plan.trace.traced_module import TracedModule


@torch.no_grad()
def interpret(
    traced: TracedModule, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients by parameter, and the new values of buffers that the step changes.

    Args:
        state: parameters and buffers by name, as ``named_parameters`` and ``named_buffers`` have
            them.
        inputs: tensors by the names of ``traced.inputs``.
    """
    known: dict[int, Any] = {}
    gradients, buffers, loss = {}, {}, None
    for node in traced.graph.nodes:
        if node.role in ("input", "parameter"):
            source = inputs if node.op == "input" else state
            if node.name not in source:
                raise fail(f"{node.op} {node.name}", "given", sorted(source)[:5])
            known[node.outputs[0]] = source[node.name]
        elif node.role == "op":
            made = run_call(traced.ops[node.name].call, [known[value] for value in node.inputs])
            known.update(zip(node.outputs, made, strict=True))
        elif node.role == "accumulate":
            gradients[node.name.removesuffix(".accumulate")] = known[node.inputs[0]]
        elif node.op == "loss":
            loss = known[node.inputs[0]]
        elif node.role == "output":
            buffers[node.name.removesuffix(".new")] = known[node.inputs[0]]
    assert loss is not None
    return loss, gradients, buffers


def run_call(call: fx.Node, inputs: list[Tensor]) -> list[Tensor]:
    """The tensors a call makes of others than those in the graph."""
    if call.op == "placeholder":  # the gradient of the loss
        return [torch.ones((), dtype=call.meta["val"].dtype)]
    given = iter(inputs)
    args, kwargs = fx.map_arg((call.args, call.kwargs), lambda _: next(given))  # pyright: ignore
    made: Any = call.target(*args, **kwargs)  # pyright: ignore
    assert len(inputs) == len(inputs_of(call))
    return [made] if isinstance(made, Tensor) else [one for one in made if one is not None]
