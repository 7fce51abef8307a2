"""The ``OpGraph`` of a joint graph, and which of its calls every node stands for."""

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from blocks._checks import check
from blocks.sharding import OpGraph, OpNode, OpRule, TensorValue, rules
from blocks.sharding.op_graph import Phase, Role
from recipes.plan.trace.joint_graph import Place
from recipes.plan.trace.node_rules import rule_of_node
from recipes.plan.trace.node_tensors import inputs_of, is_zero
from recipes.plan.trace.origin import Origin
from recipes.plan.trace.traced_module import TracedOp


class GraphBuilder:
    """Makes the graph, node by node in the order of the joint graph.

    Args:
        optimizer: the name of the update's operation.
        gradient_dtype: what gradients of narrower parameters are summed in; None: their own.
        input_names: of the arguments, by their number.
        block_of: the repeated block that a module is in, by its path.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        optimizer: str,
        gradient_dtype: torch.dtype | None,
        input_names: Sequence[str],
        block_of: Callable[[str], int],
        origins: Mapping[fx.Node, Origin],
    ) -> None:
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []
        self.ops: dict[str, TracedOp] = {}
        self.placeholders: dict[str, fx.Node] = {}
        self.params: dict[str, int] = {}
        self.inputs: list[str] = []
        self._optimizer, self._gradient_dtype = optimizer, gradient_dtype
        self._input_names = input_names
        self._block_of = block_of
        self._value_of: dict[fx.Node, int] = {}
        self._gradients: dict[str, int] = {}
        self._losses: list[tuple[Place, int]] = []
        self._names: dict[str, int] = {}
        self._rules: dict[Any, OpRule] = {}
        self._origins = origins
        self._graph = graph_module.graph

    def build(self) -> OpGraph:
        """The graph; to be called once."""
        output = self._graph.output_node()
        leaves: dict[fx.Node, list[Place]] = {}
        made: Any = output.args[0]
        for node, place in zip(made, output.meta["place"], strict=True):
            leaves.setdefault(node, []).append(place)
        places = Counter(node.meta["place"] for node in self._graph.find_nodes(op="placeholder"))
        for node in self._graph.nodes:
            if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
                what = f"argument {self._input_names[int(node.meta['place'].name)]}"
                check(not node.users, what, "a tensor, or used as the constant it is", node.users)
            elif node.op == "placeholder":
                if node.users or places[node.meta["place"]] == 1:  # else another name of a tensor
                    self._enter(node, node.meta["place"])
            elif node.op == "call_function" and node.target is not operator.getitem:
                self._call(node)
            if node.op != "output":
                for place in leaves.get(node, ()):
                    self._leave(node, place)
        returns = [self._update(name, value) for name, value in self._gradients.items()]
        return OpGraph(tuple(self.values), tuple(self.nodes), tuple(returns))

    def _enter(self, node: fx.Node, place: Place) -> None:
        tensor = node.meta["val"]
        if place.kind == "tangent":
            rule = rules.full_rule(tensor.shape)
            self._value_of[node] = self._value("loss.grad", tensor)
            origin = Origin("", "backward", "")
            made = (self._value_of[node],)
            self._node("loss.grad", "ones", "op", "backward", (), made, rule, origin)
            self.ops["loss.grad"] = TracedOp(node, (), (node,))
            return
        name = place.name
        if place.kind == "input":
            name = self._input_names[int(name)]
            self.inputs.append(name)
        value = self._value_of[node] = self._value(name, tensor)
        self.placeholders[name] = node
        if place.kind == "parameter":
            self.params[name] = value
            rule, role = rules.parameter_rule(tensor.shape), "parameter"
        else:
            rule, role = rules.input_rule(tensor.shape), "input"
        module = name.rpartition(".")[0] if place.kind != "input" else ""
        origin = Origin(module, "forward", "")
        self._node(name, place.kind, role, "forward", (), (value,), rule, origin)

    def _call(self, node: fx.Node) -> None:
        results = node.meta["val"]
        inputs = inputs_of(node)
        origin = self._origins[node]
        name = self._name_of(node, origin)
        if isinstance(results, Tensor):
            outputs: tuple[fx.Node | None, ...] = (node,)
            values = (self._value(name, results),)
        else:
            taken = {one.args[1]: one for one in node.users if one.target is operator.getitem}
            kept = [at for at, one in enumerate(results) if one is not None]
            outputs = tuple(taken.get(at) for at in kept)
            values = tuple(self._value(f"{name}.{at}", results[at]) for at in kept)
        self._value_of.update(
            (one, value) for one, value in zip(outputs, values, strict=True) if one is not None
        )
        self.ops[name] = TracedOp(node, inputs, outputs)
        read = tuple(self._value_of[one] for one in inputs)
        rule = self._rule(node)
        self._node(name, _op_name(node.target), "op", origin.phase, read, values, rule, origin)

    def _leave(self, node: fx.Node, place: Place) -> None:
        value = self._value_of[node]
        tensor = node.meta["val"]
        origin = self._origins.get(node, Origin("", "backward", ""))
        if place.kind == "gradient":
            wide = torch.promote_types(tensor.dtype, self._gradient_dtype or tensor.dtype)
            total = self._value(f"{place.name}.grad", tensor, wide)
            rule = rules.accumulate_rule(tensor.shape)
            origin = Origin(place.name.rpartition(".")[0], "backward", "")
            name = f"{place.name}.accumulate"
            self._node(
                name, "accumulate", "accumulate", "backward", (value,), (total,), rule, origin
            )
            self._gradients[place.name] = total
            return
        rule = rules.output_rule(tensor.shape)
        name = "loss" if place.kind == "loss" else f"{place.name}.new"
        phase = origin.phase if place.kind == "loss" else "forward"
        self._node(name, place.kind, "output", phase, (value,), (), rule, origin)

    def _update(self, name: str, gradient: int) -> tuple[int, int]:
        old = self.params[name]
        shape = self.values[old].shape
        new = len(self.values)
        self.values.append(
            TensorValue(f"{name}.new", shape, self.values[old].dtype, self.values[old].itemsize)
        )
        origin = Origin(name.rpartition(".")[0], "forward", "")
        optimizer, gathered = self._optimizer, 0
        if optimizer == "muon" and len(shape) >= 2 and self._block_of(origin.module) >= 0:
            gathered = max(4, self.values[old].itemsize)  # its momentum, in float32 or wider
        elif optimizer == "muon":
            optimizer = "adamw"  # Muon is for matrices of repeated layers
        rule = rules.update_rule(shape, gathered_itemsize=gathered)
        op = f"update.{optimizer}"
        self._node(f"{name}.update", op, "update", "update", (old, gradient), (new,), rule, origin)
        return new, old

    def _rule(self, node: fx.Node) -> OpRule:
        """Equal calls on equal shapes have equal rules; made once."""
        key = _call_key(node)
        if key not in self._rules:
            self._rules[key] = rule_of_node(node)
        return self._rules[key]

    def _value(self, name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> int:
        shape = tuple(int(size) for size in tensor.shape)
        kind = tensor.dtype if dtype is None else dtype
        text = str(kind).removeprefix("torch.")
        self.values.append(TensorValue(name, shape, text, kind.itemsize))
        return len(self.values) - 1

    def _name_of(self, node: fx.Node, origin: Origin) -> str:
        """``module/operation``, with ``'`` in the backward pass and a number from the second on."""
        short = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))
        name = f"{origin.module}/{short}" + ("'" if origin.phase == "backward" else "")
        number = self._names[name] = self._names.get(name, 0) + 1
        return name if number == 1 else f"{name}{number}"

    def _node(
        self,
        name: str,
        op: str,
        role: Role,
        phase: Phase,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        rule: OpRule,
        origin: Origin,
    ) -> None:
        block = self._block_of(origin.module)
        node = OpNode(
            name, op, role, phase, inputs, outputs, rule, origin.module, block, origin.source
        )
        self.nodes.append(node)


def _op_name(target: Any) -> str:
    """``aten.mul.Tensor``; functions of this package by their name alone."""
    return str(target) if isinstance(target, OpOverload) else target.__name__


def _call_key(node: fx.Node) -> Any:
    """Calls with equal keys have equal rules."""

    def written(one: fx.Node) -> str:
        tensor = one.meta["val"]
        zero = "0" if is_zero(one) else ""
        return f"{tensor.dtype}{tuple(tensor.shape)}{zero}"

    args, kwargs = fx.map_arg((node.args, node.kwargs), written)  # pyright: ignore
    results = node.meta["val"]
    kind = results.dtype if isinstance(results, Tensor) else None
    return node.target, repr(args), repr(kwargs), kind
