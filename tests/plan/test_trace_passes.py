"""What tracing makes of single pieces of code: few kinds of calls that compute the same."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.plan.trace import TracedModule, Untraceable, interpret, trace
from recipes.plan.trace.contractions import merges, segments
from recipes.plan.trace.experts import experts


class Weighted(nn.Module):
    """A function of tensors and one weight, whose output is summed with fixed factors."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self._function(self.weight, *inputs)
        factors = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).cos()
        return (out * factors).sum()


def traced_and_right(module: nn.Module, *inputs: Tensor) -> TracedModule:
    traced = trace(module, inputs)
    traced.check_invariants()
    state = {name: p.detach() for name, p in module.named_parameters()}
    names = dict(zip(traced.inputs, inputs, strict=True))
    loss, gradients, _ = interpret(traced, state, names)
    expected = module(*inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-10)
    return traced


def ops(traced: TracedModule, phase: str = "forward") -> list[str]:
    return [
        node.op.removeprefix("aten.").partition(".")[0]
        for node in traced.graph.nodes
        if node.role == "op" and node.phase == phase
    ]


def factors(traced: TracedModule, op: str, at: int = 0) -> dict[str, int]:
    found = [node for node in traced.graph.nodes if f"aten.{op}." in node.op]
    return {f.name: f.size for f in found[at].rule.factors if f.kind != "whole"}


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


PRODUCTS = {
    "linear": (lambda w, a: F.linear(a, w), (6, 4), (2, 3, 4)),
    "matrix": (lambda w, a: a @ w, (4, 6), (5, 4)),
    "flattened by hand": (lambda w, a: (a.view(-1, 4) @ w).view(2, 3, 6), (4, 6), (2, 3, 4)),
    "heads out": (lambda w, a: F.linear(a, w).view(2, 3, 2, 3).transpose(1, 2), (6, 4), (2, 3, 4)),
    "heads in": (
        lambda w, a: F.linear(a.transpose(1, 2).reshape(2, 3, 8), w), (5, 8), (2, 4, 3, 2),
    ),
    "scores": (lambda w, a: (a * w) @ (a + w).transpose(-1, -2), (2, 1, 3, 4), (2, 5, 3, 4)),
    "broadcast": (lambda w, a: a @ w, (4, 3), (2, 5, 6, 4)),
    "one row": (lambda w, a: a @ w, (4, 6), (1, 4)),
    "one column": (lambda w, a: F.linear(a, w), (1, 4), (2, 3, 4)),
    "einsum": (lambda w, a: torch.einsum("gsm,emh->egsh", a, w), (3, 4, 5), (2, 6, 4)),
    "baddbmm": (lambda w, a: torch.baddbmm(a, a, w, beta=0.5, alpha=2.0), (2, 3, 3), (2, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_contractions(name: str) -> None:
    function, weight, shape = PRODUCTS[name]
    traced = traced_and_right(Weighted(function, *weight), x(*shape))
    every = {*ops(traced), *ops(traced, "backward")}
    assert "einsum" in every
    assert not every & {"mm", "bmm", "addmm", "baddbmm", "t", "transpose", "view", "_unsafe_view"}


def test_a_linear_keeps_batch_and_sequence() -> None:
    traced = traced_and_right(Weighted(PRODUCTS["flattened by hand"][0], 4, 6), x(2, 3, 4))
    assert ops(traced)[0] == "einsum"
    assert factors(traced, "einsum") == {"row": 2, "row1": 3, "column": 6, "contraction": 4}
    weight = {"row": 4, "column": 6, "contraction": 2, "contraction1": 3}
    assert weight in [factors(traced, "einsum", at) for at in (0, 1)]


@given(st.lists(st.integers(2, 4), max_size=4), st.data())
def test_segments_cut_where_products_agree(sizes: list[int], data) -> None:
    def merged() -> list[list[int]]:
        """The positions of the sizes, in runs."""
        cuts = data.draw(st.sets(st.integers(1, max(1, len(sizes) - 1))))
        runs, begin = [], 0
        for stop in [*sorted(cut for cut in cuts if cut < len(sizes)), len(sizes)]:
            if stop > begin:
                runs.append(list(range(begin, stop)))
            begin = stop
        return runs

    one, two = merged(), merged()
    first, second = ([math.prod(sizes[at] for at in run) for run in runs] for runs in (one, two))
    found = segments(first, second, one, two)
    flat = [[at for run in part for at in run] for pair in found for part in pair]
    assert flat[::2] == flat[1::2], "both sides of a segment are the same positions"
    assert [at for part in flat[::2] for at in part] == list(range(len(sizes)))
    shared = {sum(map(len, one[:n])) for n in range(1, len(one) + 1)}
    shared &= {sum(map(len, two[:n])) for n in range(1, len(two) + 1)}
    assert len(found) == len(shared), "as short as can be"


def test_merges_of_shapes() -> None:
    assert [atom.dim for atom in merges((2, 1, 3, 8), (6, 8))[0]] == [0, 2]
    assert merges((6, 8), (2, 3, 8)).keys() == {2}


def test_a_loss_can_be_cut_along_all_dims() -> None:
    labels = torch.tensor([[1, 2, -100], [0, 5, 3]])

    def loss(w: Tensor, a: Tensor) -> Tensor:
        logits = a @ w
        return F.cross_entropy(logits.view(-1, 6), labels.view(-1), label_smoothing=0.0)

    traced = traced_and_right(Weighted(lambda w, a: loss(w, a).reshape(1), 4, 6), x(2, 3, 4))
    kinds = {
        factor.size: factor.kind
        for node in traced.graph.nodes
        if node.op == "aten.amax.default"
        for factor in node.rule.factors
    }
    assert kinds == {2: "parallel", 3: "parallel", 6: "max"}
    gather = next(node for node in traced.graph.nodes if node.op == "aten.gather.default")
    assert [f.size for f in gather.rule.factors if f.kind == "sum"][:1] == [6]
    scatter = next(node for node in traced.graph.nodes if node.op == "aten.scatter.src")
    assert 6 in [f.size for f in scatter.rule.factors if f.kind == "parallel"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_are_those_of_torch(reduction: str, weighted: bool) -> None:
    labels = torch.tensor([1, 2, -100, 5])
    weight = torch.rand(6, dtype=torch.float64) if weighted else None

    def loss(w: Tensor, a: Tensor) -> Tensor:
        made = F.cross_entropy(a @ w, labels, weight=weight, reduction=reduction)
        return made.reshape(1) + F.binary_cross_entropy_with_logits(
            a @ w, a[:, :1].sigmoid() + w[:1] * 0
        )

    traced_and_right(Weighted(loss, 4, 6), x(4, 4))


MASKS = {
    "triangle": lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
    "positions": lambda n: torch.arange(n)[None, None, None, :] <= torch.arange(n)[:, None],
    "added": lambda n: torch.full((n, n), -math.inf).triu(1).double(),
    "all": lambda n: torch.ones(n, n, dtype=torch.bool),
    "window": lambda n: torch.ones(n, n, dtype=torch.bool).tril().triu(-1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_made_of_positions(name: str) -> None:
    def attend(w: Tensor, a: Tensor) -> Tensor:
        q = (a * w).view(2, 5, 2, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=MASKS[name](5))

    traced = traced_and_right(Weighted(attend, 8), x(2, 5, 8))
    nodes = [node for node in traced.graph.nodes if "attention" in node.op]
    assert len(nodes) == 2
    assert [len(node.inputs) for node in nodes] == ([4, 7] if name == "window" else [3, 6])
    causal = [True in traced.ops[node.name].call.args for node in nodes]
    assert causal == [name in ("triangle", "positions", "added")] * 2


def test_masks_that_are_given_stay() -> None:
    def attend(w: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        q = (a * w).view(2, 5, 2, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    traced = traced_and_right(Weighted(attend, 8), x(2, 5, 8), mask)
    assert [len(n.inputs) for n in traced.graph.nodes if "attention" in n.op] == [4, 7]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_and_their_gradients(groups: int) -> None:
    def conv(w: Tensor, a: Tensor) -> Tensor:
        down = F.conv2d(a, w, w.sum((1, 2, 3)), stride=2, padding=1, groups=groups)
        return F.conv_transpose2d(down, w, stride=2, groups=groups)

    traced = traced_and_right(Weighted(conv, 8, 4 // groups, 3, 3), x(2, 4, 6, 6))
    named = [node.op for node in traced.graph.nodes if "conv" in node.op]
    gradients = ["conv_input_gradient", "conv_weight_gradient", "conv_weight_gradient"]
    assert sorted(named) == [*gradients, "convolution", "convolution"], "none of the images"


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_its_sums(training: bool) -> None:
    norm = nn.BatchNorm2d(3).double().train(training)
    norm.running_mean = torch.randn(3, dtype=torch.float64)  # pyright: ignore
    images = x(4, 3, 5, 5)
    traced = trace(norm, (images,), loss=lambda y: (y * y * y).sum())
    state = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    state = {name: one.detach().clone() for name, one in state.items()}
    loss, gradients, buffers = interpret(traced, state, {"args.0": images})
    expected = (norm(images) ** 3).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["weight"], norm.weight.grad)
    torch.testing.assert_close(gradients["bias"], norm.bias.grad)
    for name, value in buffers.items():
        torch.testing.assert_close(value, dict(norm.named_buffers())[name])
    assert len(buffers) == (3 if training else 0)


@pytest.mark.parametrize("given_experts", [(0, 1, 2), (1,), (2, 0)])
def test_experts_given_are_the_experts_used(given_experts: tuple[int, ...]) -> None:
    tokens, weights = x(7, 4).requires_grad_(), torch.rand(7, 2, dtype=torch.float64)
    weights.requires_grad_()
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(7)])
    numbers = torch.tensor(given_experts)
    up, down = x(3, 10, 4), x(3, 4, 5)
    own_up, own_down = (one[numbers].clone().requires_grad_() for one in (up, down))
    made = experts(tokens, chosen, weights, numbers, own_up, own_down)
    again = [one.detach().clone().requires_grad_() for one in (tokens, weights, own_up, own_down)]
    expected = torch.zeros_like(made)
    for place, number in enumerate(given_experts):
        gate, value = (again[0] @ again[2][place].T).chunk(2, -1)
        share = (again[1] * (chosen == number)).sum(-1, keepdim=True)
        expected = expected + share * ((F.silu(gate) * value) @ again[3][place].T)
    torch.testing.assert_close(made, expected)
    for result in (made, expected):
        (result * result).sum().backward()
    for one, other in zip((tokens, weights, own_up, own_down), again, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


BENDS = (
    *("softplus", "leaky_relu", "elu", "hardtanh", "hardswish", "hardsigmoid", "mish", "relu6"),
    *("softshrink", "silu", "gelu", "tanh", "sigmoid", "relu", "logsigmoid"),
)


def test_gradients_of_activations_go_element_by_element() -> None:
    def bend(w: Tensor, a: Tensor) -> Tensor:
        return torch.stack([getattr(F, name)(a * w) for name in BENDS])

    traced = traced_and_right(Weighted(bend, 4), x(3, 4))
    whole = [
        node.name
        for node in traced.graph.nodes
        if node.role == "op" and not any(f.kind != "whole" for f in node.rule.factors)
        if any(traced.graph.values[v].shape == (3, 4) for v in node.outputs)
    ]
    assert not whole


REFUSED = {
    "items": lambda w, a: a * w.sum().item(),
    "loops": lambda w, a: sum((a * w for _ in range(int(w.sum()))), a),
    "picked": lambda w, a: (a * w)[a > 0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_values_is_refused(name: str) -> None:
    with pytest.raises(Untraceable, match="expected operations whose shapes and branches") as found:
        trace(Weighted(REFUSED[name], 4), (x(3, 4),))
    assert found.value.file == __file__
    line = Path(__file__).read_text().splitlines()[found.value.line - 1]
    assert f'"{name}"' in line or "self._function(" in line


def test_other_errors_keep_their_kind_and_name_the_line() -> None:
    with pytest.raises(RuntimeError) as found:
        trace(Weighted(lambda w, a: a @ w, 5, 6), (x(3, 4),))
    assert any(__file__ in note for note in found.value.__notes__)
