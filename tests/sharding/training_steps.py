"""Training steps written by hand, in the manner of a trace, with the rules of their operations."""

from collections.abc import Sequence

from blocks.sharding import OpGraph, OpNode, OpRule, TensorValue
from blocks.sharding.op_graph import Phase, Role
from blocks.sharding.rules import (
    accumulate_rule,
    attention_backward_rule,
    attention_rule,
    conv_input_gradient_rule,
    conv_rule,
    conv_weight_gradient_rule,
    einsum_rule,
    elementwise_rule,
    embedding_backward_rule,
    embedding_rule,
    gather_rule,
    input_rule,
    linear_input_gradient_rule,
    linear_rule,
    linear_weight_gradient_rule,
    output_rule,
    parameter_rule,
    permute_rule,
    reduce_rule,
    scatter_rule,
    update_rule,
    view_rule,
)

Shape = tuple[int, ...]


class Step:
    """Writes a step down, operation by operation; values are their indices."""

    def __init__(self) -> None:
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []
        self.returns: list[tuple[int, int]] = []

    def add(
        self,
        op: str,
        rule: OpRule,
        inputs: Sequence[int],
        *shapes: Shape,
        role: Role = "op",
        phase: Phase = "forward",
        name: str = "",
    ) -> int:
        name = name or f"{op}_{len(self.nodes)}"
        outputs = tuple(range(len(self.values), len(self.values) + len(shapes)))
        for place, shape in enumerate(shapes):
            self.values.append(
                TensorValue(f"{name}.{place}" if place else name, shape, "float32", 4)
            )
        self.nodes.append(OpNode(name, op, role, phase, tuple(inputs), outputs, rule))
        return outputs[0] if outputs else -1

    def shape(self, value: int) -> Shape:
        return self.values[value].shape

    def graph(self) -> OpGraph:
        return OpGraph(tuple(self.values), tuple(self.nodes), tuple(self.returns))

    def input(self, name: str, *shape: int) -> int:
        return self.add("input", input_rule(shape), (), shape, role="input", name=name)

    def parameter(self, name: str, *shape: int) -> int:
        return self.add("parameter", parameter_rule(shape), (), shape, role="parameter", name=name)

    def learn(self, weight: int, gradient: int) -> None:
        """Sum the gradient over the microbatches and update the parameter."""
        name, shape = self.values[weight].name, self.shape(weight)
        total = self.add(
            *("accumulate", accumulate_rule(shape), (gradient,), shape),
            role="accumulate", phase="backward", name=f"{name}.accumulate",
        )  # fmt: skip
        new = self.add(
            *("adamw", update_rule(shape), (weight, total), shape),
            role="update", phase="update", name=f"{name}.update",
        )  # fmt: skip
        self.returns.append((new, weight))

    def output(self, value: int) -> None:
        self.add("output", output_rule(self.shape(value)), (value,), role="output")

    def map(self, op: str, *inputs: int, phase: Phase = "forward", linear: bool = False) -> int:
        """Element by element."""
        shapes = [self.shape(value) for value in inputs]
        together = [tuple(range(len(inputs)))] if linear else []
        rule = elementwise_rule(shapes, linear=together)
        return self.add(op, rule, inputs, shapes[0], phase=phase)

    def linear(self, x: int, weight: int) -> int:
        """Weights lie [out, in]."""
        shape = (*self.shape(x)[:-1], self.shape(weight)[0])
        return self.add(
            "linear", linear_rule(self.shape(x), self.shape(weight)), (x, weight), shape
        )

    def linear_back(self, grad: int, x: int, weight: int, *, to_input: bool = True) -> int:
        """Learns the weight; gives the gradient of the input."""
        g, w = self.shape(grad), self.shape(weight)
        rule = linear_weight_gradient_rule(g, self.shape(x))
        dw = self.add("linear_weight_gradient", rule, (grad, x), w, phase="backward")
        self.learn(weight, dw)
        if not to_input:
            return -1
        rule = linear_input_gradient_rule(g, w)
        return self.add(
            "linear_input_gradient", rule, (grad, weight), self.shape(x), phase="backward"
        )

    def conv(self, x: int, weight: int) -> int:
        n, _, height, width = self.shape(x)
        shape = (n, self.shape(weight)[0], height, width)
        rule = conv_rule(self.shape(x), self.shape(weight), shape)
        return self.add("conv", rule, (x, weight), shape)

    def conv_back(self, grad: int, x: int, weight: int, *, to_input: bool = True) -> int:
        g, i, w = self.shape(grad), self.shape(x), self.shape(weight)
        dw = self.add(
            *("conv_weight_gradient", conv_weight_gradient_rule(i, w, g), (grad, x), w),
            phase="backward",
        )
        self.learn(weight, dw)
        if not to_input:
            return -1
        rule = conv_input_gradient_rule(i, w, g)
        return self.add("conv_input_gradient", rule, (grad, weight), i, phase="backward")


def mlp_step(num_layers: int, batch: int, hidden: int, *, input_gradient: bool = False) -> OpGraph:
    """Linear layers in a row; the gradient is of a difference to a target.

    Where an activation would be there is an operation that changes nothing: what it makes is kept
    for the backward pass in the placement it is made in.
    """
    step = Step()
    x, target = step.input("x", batch, hidden), step.input("target", batch, hidden)
    kept = []
    for layer in range(num_layers):
        weight = step.parameter(f"w{layer}", hidden, hidden)
        kept.append((x, weight))
        x = step.map("identity", step.linear(x, weight), linear=True)
    grad = step.map("difference", x, target, phase="backward")
    for layer, (x, weight) in reversed(list(enumerate(kept))):
        grad = step.linear_back(grad, x, weight, to_input=layer > 0 or input_gradient)
    if input_gradient:
        step.output(grad)
    return step.graph()


def attention_forward(batch: int, length: int, hidden: int, heads: int) -> OpGraph:
    """Projections, heads, attention, output projection."""
    step = Step()
    x = step.input("x", batch, length, hidden)
    step.output(step.map("identity", _attend(step, x, heads)[0], linear=True))
    return step.graph()


def _attend(step: Step, x: int, heads: int) -> tuple[int, dict[str, int]]:
    batch, length, hidden = step.shape(x)
    split = (batch, length, heads, hidden // heads)
    kept = {}
    for name in "qkv":
        kept[f"w{name}"] = step.parameter(f"w{name}", hidden, hidden)
        flat = step.linear(x, kept[f"w{name}"])
        seen = step.add("view", view_rule(step.shape(flat), split), (flat,), split)
        turned = (batch, heads, length, hidden // heads)
        kept[name] = step.add("permute", permute_rule(split, (0, 2, 1, 3)), (seen,), turned)
    shape = step.shape(kept["q"])
    qkv = (kept["q"], kept["k"], kept["v"])
    kept["out"] = step.add(
        *("attention", attention_rule(shape, shape), qkv, shape, shape[:3]),
    )
    kept["lse"] = kept["out"] + 1
    back = step.add("permute", permute_rule(shape, (0, 2, 1, 3)), (kept["out"],), split)
    flat = (batch, length, hidden)
    kept["mixed"] = step.add("view", view_rule(split, flat), (back,), flat)
    kept["wo"] = step.parameter("wo", hidden, hidden)
    return step.linear(kept["mixed"], kept["wo"]), kept


def _attend_back(step: Step, grad: int, x: int, heads: int, kept: dict[str, int]) -> int:
    batch, length, hidden = step.shape(x)
    split, turned = (batch, length, heads, hidden // heads), step.shape(kept["q"])
    grad = step.linear_back(grad, kept["mixed"], kept["wo"])
    grad = step.add("view", view_rule(step.shape(grad), split), (grad,), split, phase="backward")
    rule = permute_rule(split, (0, 2, 1, 3))
    grad = step.add("permute", rule, (grad,), turned, phase="backward")
    reads = (grad, *(kept[name] for name in ("q", "k", "v", "out", "lse")))
    rule = attention_backward_rule(turned, turned)
    first = step.add("attention_backward", rule, reads, turned, turned, turned, phase="backward")
    found = []
    for place, name in enumerate("qkv"):
        rule = permute_rule(turned, (0, 2, 1, 3))
        back = step.add("permute", rule, (first + place,), split, phase="backward")
        flat = step.add(
            "view", view_rule(split, step.shape(x)), (back,), step.shape(x), phase="backward"
        )
        found.append(step.linear_back(flat, x, kept[f"w{name}"]))
    total = step.map("add", found[0], found[1], phase="backward", linear=True)
    return step.map("add", total, found[2], phase="backward", linear=True)


def decoder_step(batch: int, length: int, hidden: int, heads: int) -> OpGraph:
    """A decoder block with residuals (norms left out), between an embedding and a difference."""
    step = Step()
    x = step.input("x", batch, length, hidden)
    x = step.map("enter", x)
    attended, kept = _attend(step, x, heads)
    middle = step.map("add", x, attended, linear=True)
    up, down = step.parameter("up", 4 * hidden, hidden), step.parameter("down", hidden, 4 * hidden)
    wide = step.linear(middle, up)
    bent = step.map("gelu", wide)
    out = step.map("add", middle, step.linear(bent, down), linear=True)
    target = step.input("target", batch, length, hidden)
    grad = step.map("difference", out, target, phase="backward")
    to_bent = step.linear_back(grad, bent, down)
    to_wide = step.map("gelu_backward", to_bent, wide, phase="backward")
    to_middle = step.linear_back(to_wide, middle, up)
    to_middle = step.map("add", grad, to_middle, phase="backward", linear=True)
    to_x = _attend_back(step, to_middle, x, heads, kept)
    step.output(step.map("add", to_middle, to_x, phase="backward", linear=True))
    return step.graph()


def vocabulary_step(tokens: int, hidden: int, vocab: int) -> OpGraph:
    """A head and the log-softmax loss of it."""
    step = Step()
    x, label = step.input("x", tokens, hidden), step.input("label", tokens, 1)
    head = step.parameter("head", vocab, hidden)
    logits = step.linear(x, head)
    wide, one = (tokens, vocab), (tokens, 1)
    most = step.add("amax", reduce_rule(wide, [1], keepdim=True, kind="max"), (logits,), one)
    below = step.add("sub", elementwise_rule([wide, one]), (logits, most), wide)
    powers = step.map("exp", below)
    total = step.add("sum", reduce_rule(wide, [1], keepdim=True), (powers,), one)
    log = step.map("log", total)
    picked = step.add("gather", gather_rule(wide, one, 1), (below, label), one)
    each = step.map("sub", log, picked, linear=True)
    loss = step.add("sum", reduce_rule(one), (each,), ())
    step.output(loss)
    shares = step.add("div", elementwise_rule([wide, one]), (powers, total), wide, phase="backward")
    rule = scatter_rule(wide, one, 1, onto_zeros=False)
    values = step.map("ones", label, phase="backward")
    grad = step.add("scatter_add", rule, (shares, label, values), wide, phase="backward")
    step.linear_back(grad, x, head, to_input=True)
    return step.graph()


def conv_step(batch: int, channels: int, size: int, num_layers: int = 3) -> OpGraph:
    """Convolutions in a row with ReLUs."""
    step = Step()
    x = step.input("x", batch, channels, size, size)
    kept = []
    for layer in range(num_layers):
        weight = step.parameter(f"w{layer}", channels, channels, 3, 3)
        y = step.conv(x, weight)
        kept.append((x, weight, y))
        x = step.map("relu", y)
    target = step.input("target", batch, channels, size, size)
    grad = step.map("difference", x, target, phase="backward")
    for layer, (x, weight, y) in reversed(list(enumerate(kept))):
        grad = step.map("relu_backward", grad, y, phase="backward")
        grad = step.conv_back(grad, x, weight, to_input=layer > 0)
    return step.graph()


def experts_step(groups: int, tokens: int, experts: int, slots: int, channels: int) -> OpGraph:
    """A mixture of experts of fixed capacity, its masks given, in the einsums of GShard."""
    step = Step()
    x = step.input("x", groups, tokens, channels)
    mask = step.input("mask", groups, tokens, experts, slots)
    up = step.parameter("up", experts, channels, 4 * channels)
    down = step.parameter("down", experts, 4 * channels, channels)

    def product(equation: str, a: int, b: int, *shape: int, phase: Phase = "forward") -> int:
        rule = einsum_rule(equation, [step.shape(a), step.shape(b)])
        return step.add("einsum", rule, (a, b), shape, phase=phase)

    inner, wide = (experts, groups, slots, channels), (experts, groups, slots, 4 * channels)
    sent = step.map("identity", product("gsec,gsm->egcm", mask, x, *inner), linear=True)
    up_out = product("egcm,emh->egch", sent, up, *wide)
    bent = step.map("relu", up_out)
    back = product("egch,ehm->egcm", bent, down, *inner)
    out = product("gsec,egcm->gsm", mask, back, groups, tokens, channels)
    target = step.input("target", groups, tokens, channels)
    grad = step.map("difference", out, target, phase="backward")
    to_back = product("gsec,gsm->egcm", mask, grad, *inner, phase="backward")
    step.learn(down, product("egch,egcm->ehm", bent, to_back, *step.shape(down), phase="backward"))
    to_bent = product("egcm,ehm->egch", to_back, down, *wide, phase="backward")
    to_up = step.map("relu_backward", to_bent, up_out, phase="backward")
    step.learn(up, product("egcm,egch->emh", sent, to_up, *step.shape(up), phase="backward"))
    to_sent = product("egch,emh->egcm", to_up, up, *inner, phase="backward")
    step.output(
        product("gsec,egcm->gsm", mask, to_sent, groups, tokens, channels, phase="backward")
    )
    return step.graph()


def turned_step(rows: int, columns: int) -> OpGraph:
    """Two layers between which the activations are turned, and seen in another shape, and back."""
    step = Step()
    x = step.input("x", rows, columns)
    kept = []
    for layer in range(2):
        weight = step.parameter(f"w{layer}", columns, columns)
        kept.append((x, weight))
        x = step.map("identity", step.linear(x, weight), linear=True)
        x = step.add("permute", permute_rule((rows, columns), (1, 0)), (x,), (columns, rows))
        apart = (4, columns // 4, rows)
        x = step.add("view", view_rule((columns, rows), apart), (x,), apart)
        x = step.add("view", view_rule(apart, (columns, rows)), (x,), (columns, rows))
        x = step.add("permute", permute_rule((columns, rows), (1, 0)), (x,), (rows, columns))
    grad = step.map("difference", x, step.input("target", rows, columns), phase="backward")
    for layer, (x, weight) in reversed(list(enumerate(kept))):
        grad = step.linear_back(grad, x, weight, to_input=layer > 0)
    return step.graph()


def embedding_step(tokens: int, vocab: int, hidden: int, *, tied: bool) -> OpGraph:
    """A table looked up, and a difference; or, where tied, products with the table again."""
    step = Step()
    ids, table = step.input("ids", tokens), step.parameter("table", vocab, hidden)
    rule = embedding_rule((vocab, hidden), (tokens,))
    x = step.add("embedding", rule, (table, ids), (tokens, hidden))
    if tied:
        y = step.linear(x, table)
        target = step.input("target", tokens, vocab)
        to_logits = step.map("difference", y, target, phase="backward")
        rule = linear_weight_gradient_rule((tokens, vocab), (tokens, hidden))
        other = step.add(
            "linear_weight_gradient", rule, (to_logits, x), (vocab, hidden), phase="backward"
        )
        rule = linear_input_gradient_rule((tokens, vocab), (vocab, hidden))
        grad = step.add(
            "linear_input_gradient", rule, (to_logits, table), (tokens, hidden), phase="backward"
        )
    else:
        x = step.map("identity", x, linear=True)
        grad = step.map("difference", x, step.input("target", tokens, hidden), phase="backward")
    rule = embedding_backward_rule((tokens, hidden), vocab)
    dw = step.add("embedding_backward", rule, (grad, ids), (vocab, hidden), phase="backward")
    if tied:
        dw = step.map("add", dw, other, phase="backward", linear=True)
    step.learn(table, dw)
    return step.graph()
