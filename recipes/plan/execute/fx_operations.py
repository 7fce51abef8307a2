"""``FxOperations``: the calls of a traced module, on local parts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from blocks.sharding import first_name
from recipes.plan.execute.local_call import LocalCall
from recipes.plan.execute.twins import twin_of


class TracedCall(Protocol):
    """What a node of the graph stands for; ``recipes.plan.trace.TracedOp`` is one.

    call: of an aten operation, or a placeholder: the gradient of the loss.
    inputs: for every input of the node the fx node that makes it.
    """

    @property
    def call(self) -> fx.Node: ...

    @property
    def inputs(self) -> tuple[fx.Node, ...]: ...


class FxOperations:
    """Runs aten operations; those that are told sizes or places are told the local ones."""

    def __init__(self, ops: Mapping[str, Any]) -> None:
        """
        Args:
            ops: by name of a node what it stands for, see ``TracedCall``.
        """
        self._ops = ops

    def run(self, call: LocalCall, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """A rank's parts of a node's outputs, in the order of the node's."""
        traced: TracedCall = self._ops[first_name(call.node.name)]
        if traced.call.op == "placeholder":
            dtype = getattr(torch, call.outputs[0].dtype)
            shape = call.output_shape(0)
            return (torch.full(shape, call.loss_scale, dtype=dtype, device=call.device),)
        given = iter(inputs)
        args, kwargs = fx.map_arg((traced.call.args, traced.call.kwargs), lambda _: next(given))
        if "device" in kwargs:  # a trace was made somewhere else
            kwargs = {**kwargs, "device": call.device}
        target: Any = traced.call.target
        twin = twin_of(target)
        found = target(*args, **kwargs) if twin is None else twin(call, target, *args, **kwargs)
        if isinstance(found, Tensor):
            return (found,)
        return tuple(one for one in found if one is not None)
