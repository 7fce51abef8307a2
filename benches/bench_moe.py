"""Routing and mixtures of experts, beside a loop over the experts and torch's grouped product."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.cases_ops import normal
from blocks import ops
from tests.numerics import assert_close, assert_like_torch


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sizes of one mixture of experts."""

    name: str
    num_experts: int
    top_k: int
    hidden_size: int
    inner: int


TINY = Mixture("tiny", 8, 2, 64, 96)
MIXTRAL_EIGHTH = Mixture("mixtral_tp8", 8, 2, 4096, 1792)
QWEN3_30B = Mixture("qwen3_30b", 128, 8, 2048, 768)
ON_A_CPU = [TINY, Mixture("small", 16, 4, 512, 512)]
MIXTURES = [TINY, MIXTRAL_EIGHTH, QWEN3_30B] if torch.cuda.is_available() else ON_A_CPU
TOKENS = [1, 64, 512]


def loop(x: Tensor, gate_up: Tensor, down: Tensor, routing: ops.Routing) -> Tensor:
    """The plain way: one expert after the other, those nobody chose left out."""
    out = torch.zeros_like(x)
    for expert in routing.experts.unique().tolist():
        tokens, rank = torch.where(routing.experts == expert)
        gate, up = F.linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down[expert])
        y = y * routing.weights[tokens, rank, None]
        out = out.index_add(0, tokens, y.to(x.dtype))
    return out


def torch_grouped(x: Tensor, gate_up: Tensor, down: Tensor, routing: ops.Routing) -> Tensor:
    """torch's grouped product between gathers."""
    ends = routing.offsets[1:]
    rows = x[routing.tokens]
    gate, up = torch._grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    y = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return (y[routing.places] * routing.weights[..., None]).sum(1).to(x.dtype)


def matrices(
    mixture: Mixture, device: torch.device, *, grad: bool = False
) -> tuple[Tensor, Tensor]:
    experts, hidden, inner = mixture.num_experts, mixture.hidden_size, mixture.inner
    gate_up = normal(experts, 2 * inner, hidden, device=device).mul(hidden**-0.5)
    down = normal(experts, hidden, inner, device=device).mul(inner**-0.5)
    return gate_up.requires_grad_(grad), down.requires_grad_(grad)


def inputs(
    mixture: Mixture, num_tokens: int, device: torch.device, *, grad: bool = False
) -> tuple[Tensor, Tensor, Tensor, ops.Routing]:
    x = normal(num_tokens, mixture.hidden_size, device=device, grad=grad)
    logits = normal(num_tokens + 1, mixture.num_experts, device=device)[1:]
    gate_up, down = matrices(mixture, device, grad=grad)
    return x, gate_up, down, ops.route(logits, mixture.top_k)


@pytest.mark.parametrize("num_tokens", TOKENS)
@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.name)
def bench_moe(timed, device: torch.device, mixture: Mixture, num_tokens: int) -> None:
    given = inputs(mixture, num_tokens, device)
    x, gate_up, down, routing = given
    exact = ops.moe(x.float(), gate_up.float(), down.float(), routing, impl="reference")
    assert_like_torch(ops.moe(*given), loop(*given), exact)
    experts = int(routing.experts.unique().numel())
    sizes = (mixture.top_k, mixture.hidden_size, mixture.inner, experts, 2)
    work = ops.moe_work(num_tokens, *sizes)
    peers = {"loop": lambda: loop(*given), "_grouped_mm": lambda: torch_grouped(*given)}
    with torch.inference_mode():
        timed(
            lambda: ops.moe(*given),
            work=work,
            peers=peers,
            mixture=mixture.name,
            num_tokens=num_tokens,
        )


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.name)
def bench_moe_forward_and_backward(timed, device: torch.device, mixture: Mixture) -> None:
    num_tokens = 4096 if device.type == "cuda" else 128
    given = inputs(mixture, num_tokens, device, grad=True)
    upstream = normal(num_tokens, mixture.hidden_size, device=device)

    def trained(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*given), given[:3], upstream)

    for ours, theirs in zip(trained(ops.moe), trained(loop), strict=True):
        assert_close(ours, theirs, slack=3)  # both round to bf16 between the products
    sizes = (mixture.top_k, mixture.hidden_size, mixture.inner, mixture.num_experts, 2)
    once = ops.moe_work(num_tokens, *sizes)
    timed(
        lambda: trained(ops.moe),
        work=type(once)(3 * once.flops, 3 * once.bytes),
        peers={"loop": lambda: trained(loop)},
        mixture=mixture.name,
    )


@pytest.mark.parametrize("num_tokens", TOKENS)
def bench_route(timed, device: torch.device, num_tokens: int) -> None:
    logits = normal(num_tokens, 128, device=device)
    ours, expected = ops.route(logits, 8), ops.route(logits, 8, impl="reference")
    assert torch.equal(ours.experts, expected.experts)
    assert torch.equal(ours.places, expected.places)
    work = ops.route_work(num_tokens, 128, 8, 2)
    timed(lambda: ops.route(logits, 8), work=work, num_tokens=num_tokens)
