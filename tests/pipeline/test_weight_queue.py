"""Weight gradients put aside: the bits of autograd, whatever is left to it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from blocks.pipeline.weight_queue import WeightQueue

Forward = Callable[[nn.Module, Tensor], Tensor]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6, bias=False)


def compare(forward: Forward, x: Tensor) -> tuple[dict[str, Tensor | None], set[str]]:
    """Check the bits with the queue against those without; what the backward gave by name, and the
    names of what was put aside."""
    torch.manual_seed(2)
    layers = Layers()
    parameters = dict(layers.named_parameters())
    inputs = [x] if x.is_floating_point() else []
    wanted = [*inputs, *parameters.values()]

    def gradients(queue: WeightQueue | None) -> list[Tensor | None]:
        if queue is None:
            loss = forward(layers, x).square().sum()
        else:
            with queue:
                loss = forward(layers, x).square().sum()
        return list(torch.autograd.grad(loss, wanted, allow_unused=True))

    expected = gradients(None)
    queue = WeightQueue({id(p) for p in parameters.values()})
    found = gradients(queue)
    late = queue.take()
    assert not queue.pending
    names = {id(p): name for name, p in parameters.items()}
    for index, tensor in enumerate(wanted):
        total, after = found[index], late.get(id(tensor))
        if after is not None:
            total = after if total is None else total + after
        want = expected[index]
        assert (want is None) == (total is None)
        if want is not None and total is not None:
            assert torch.equal(total, want), names.get(id(tensor), "input")
    return dict(zip(parameters, found[len(inputs) :], strict=True)), {names[i] for i in late}


X = torch.linspace(-1, 1, 30).view(5, 6).requires_grad_()


def whole(layers: nn.Module, x: Tensor) -> Tensor:
    x = layers.embed(x) if not x.is_floating_point() else x  # type: ignore[operator]
    y = layers.down(torch.tanh(layers.up(layers.norm(x))))  # type: ignore[operator]
    return y.float()


@pytest.mark.parametrize(
    "x",
    [
        X,
        X[None, :4].view(2, 2, 6),
        X[:1],
        torch.tensor([1, 5, 1]),
        torch.tensor([[1, 2], [5, 6]]),
    ],
    ids=["rows", "batch", "one row", "tokens", "batch of tokens"],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_layers_are_put_aside_and_nothing_else(x: Tensor, autocast: bool) -> None:
    def forward(layers: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return whole(layers, x)

    x = x.detach().requires_grad_() if x.is_floating_point() else x
    early, late = compare(forward, x)
    assert late == {"up.weight", "down.weight"}
    assert all(early[name] is None for name in late)


def test_narrow_copies_are_put_aside_for_the_wide_parameter() -> None:
    class Narrow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, parameter):
            return parameter.to(torch.bfloat16)

        @staticmethod
        def backward(ctx, gradient):
            return gradient.to(torch.float32)

    def forward(layers, x: Tensor) -> Tensor:
        copy = Narrow.apply(layers.up.weight)
        copy.narrowed_from = layers.up.weight
        return F.linear(x.to(torch.bfloat16), copy).float()

    _, late = compare(forward, X.detach().requires_grad_())
    assert late == {"up.weight"}


@pytest.mark.parametrize("cached", [None, True, False])
def test_a_weight_used_three_times(cached: bool | None) -> None:
    def forward(layers, x: Tensor) -> Tensor:
        on = cached is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=on, cache_enabled=cached):
            for _ in range(3):
                x = layers.down(torch.tanh(layers.up(x)))
        return x.float()

    assert compare(forward, X.detach().requires_grad_())[1] == {"up.weight", "down.weight"}


@pytest.mark.parametrize("shared", [True, False])
def test_narrow_copies_used_three_times(shared: bool) -> None:
    def forward(layers, x: Tensor) -> Tensor:
        def narrow(weight: Tensor) -> Tensor:
            copy = weight.to(torch.bfloat16)
            copy.narrowed_from = weight  # type: ignore[attr-defined]
            return copy

        x, kept = x.to(torch.bfloat16), [narrow(layers.up.weight), narrow(layers.down.weight)]
        for _ in range(3):
            up, down = kept if shared else [narrow(layers.up.weight), narrow(layers.down.weight)]
            x = F.linear(torch.tanh(F.linear(x, up)), down)
        return x.float()

    assert compare(forward, X.detach().requires_grad_())[1] == {"up.weight", "down.weight"}


def test_a_weight_used_in_two_ways() -> None:
    def forward(layers, x: Tensor) -> Tensor:
        return F.linear(layers.embed(x), layers.embed.weight)

    assert compare(forward, torch.tensor([1, 5, 1]))[1] == {"embed.weight"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda layers, x: layers.up(x.t().contiguous().t()),
        lambda layers, x: layers.up(x[0]),
        lambda layers, x: F.linear(x, layers.up.weight * 2.0),
        lambda layers, x: x @ layers.up.weight.t(),
        lambda layers, x: checkpoint(layers.up, x, use_reentrant=False),
    ],
    ids=[
        "strided input",
        "vector",
        "a product of the weight",
        "no linear",
        "checkpoint",
    ],
)
def test_other_calls_are_left_to_autograd(forward: Forward) -> None:
    early, late = compare(forward, X.detach().requires_grad_())
    assert late == set()
    assert early["up.weight"] is not None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_layers_keep_their_bits(backend: str) -> None:
    def forward(layers, x: Tensor) -> Tensor:
        return torch.compile(layers.up, backend=backend)(x)

    compare(forward, X.detach().requires_grad_())
