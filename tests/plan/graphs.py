"""Small training steps written by hand: a chain of linear layers with forward, backward, update."""

from blocks.sharding import Factor, OpGraph, OpNode, OpRule, TensorValue


class _Writing:
    def __init__(self) -> None:
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []

    def add(self, name, op, role, phase, inputs, rule, shape=None, block=-1, module="") -> int:
        outputs = ()
        if shape is not None:
            outputs = (len(self.values),)
            self.values.append(TensorValue(name, shape, "float32", 4))
        self.nodes.append(
            OpNode(name, op, role, phase, tuple(inputs), outputs, rule, module, block)
        )
        return outputs[0] if outputs else -1


def mlp(num_layers: int, batch: int = 8, width: int = 16) -> OpGraph:
    """``num_layers`` square linear layers, each with a ReLU, their loss, AdamW.

    Layer ``i`` is block ``i``; input and loss are in none.
    """
    w = _Writing()
    b, i, o = Factor("batch", batch), Factor("in", width), Factor("out", width)

    def total(factor: Factor) -> Factor:
        return Factor(factor.name, factor.size, "sum")

    forward = OpRule((b, o, total(i)), ((0, 2), (1, 2)), ((0, 1),), ((0,), (1,)), 2)
    to_input = OpRule((b, i, total(o)), ((0, 2), (2, 1)), ((0, 1),), ((0,), (1,)), 2)
    to_weight = OpRule((o, i, total(b)), ((2, 0), (2, 1)), ((0, 1),), ((0,), (1,)), 2)
    point = OpRule((b, o), ((0, 1),), ((0, 1),))
    masked = OpRule((b, o), ((0, 1), (0, 1)), ((0, 1),))
    loss = OpRule((total(b), total(o)), ((0, 1),), ((),), ((0,),))
    made = OpRule((b, o), (), ((0, 1),))
    lies = OpRule((o, i), (), ((0, 1),))
    summed = OpRule((o, i), ((0, 1),), ((0, 1),), ((0,),))
    adam = OpRule((o, i), ((0, 1), (0, 1)), ((0, 1),))
    acts, grads, square = (batch, width), (batch, width), (width, width)

    x = w.add("x", "input", "input", "forward", (), made, acts)
    kept, weights = [], []
    for layer in range(num_layers):
        at = {"block": layer, "module": f"layers.{layer}"}
        name = f"layers.{layer}.weight"
        weights.append(w.add(name, "parameter", "parameter", "forward", (), lies, square, **at))
        y = w.add(f"mm_{layer}", "mm", "op", "forward", (x, weights[-1]), forward, acts, **at)
        kept.append((x, y))
        x = w.add(f"relu_{layer}", "relu", "op", "forward", (y,), point, acts, **at)
    total_loss = w.add("loss", "sum", "op", "forward", (x,), loss, (), num_layers - 1)
    rule = OpRule((), ((),), ())
    w.add("output", "output", "output", "forward", (total_loss,), rule, None, num_layers - 1)
    gradient = w.add("ones", "ones", "op", "backward", (), made, grads, num_layers - 1)
    returns = []
    for layer in reversed(range(num_layers)):
        at = {"block": layer, "module": f"layers.{layer}"}
        x, y = kept[layer]
        both = (gradient, y)
        dy = w.add(f"drelu_{layer}", "drelu", "op", "backward", both, masked, grads, **at)
        both = (dy, x)
        dw = w.add(f"dw_{layer}", "mm", "op", "backward", both, to_weight, square, **at)
        if layer:
            both = (dy, weights[layer])
            gradient = w.add(f"dx_{layer}", "mm", "op", "backward", both, to_input, grads, **at)
        acc = w.add(
            f"accumulate:layers.{layer}.weight",
            *("accumulate", "accumulate", "backward", (dw,), summed, square),
            **at,
        )
        new = w.add(
            f"update:layers.{layer}.weight",
            *("adamw", "update", "update", (weights[layer], acc), adam, square),
            **at,
        )
        returns.append((new, weights[layer]))
    return OpGraph(tuple(w.values), tuple(w.nodes), tuple(returns))
