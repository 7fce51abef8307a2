"""Norms and their gradients, beside torch's own: eager, fused and, on an accelerator, compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.cases_ops import NormCase
from benches.shapes import LLAMA_8B, LLAMA_200M, TINY, ModelShape
from blocks import ops
from tests.numerics import assert_close

MODELS = [TINY, LLAMA_200M, LLAMA_8B]
FEW_ROWS = [1, 8, 32]
KINDS = ["rms", "add rms", "layer"]
Result = tuple[Tensor, ...]


def ours(case: NormCase, impl: Any = None) -> Result:
    """The normed rows, and the sum where there is a residual."""
    options: dict[str, Any] = {"eps": case.eps, "residual": case.residual, "impl": impl}
    if case.bias is not None:
        found = ops.layer_norm(case.x, case.weight, case.bias, **options)
    else:
        found = ops.rms_norm(case.x, case.weight, **options)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def fused(x: Tensor, weight: Tensor, residual: Tensor | None, bias: Tensor | None) -> Result:
    """torch's fused norms."""
    total = x if residual is None else x + residual
    if bias is not None:
        return (F.layer_norm(total, x.shape[-1:], weight, bias, 1e-6),)
    y = F.rms_norm(total, x.shape[-1:], weight, 1e-6)
    return (y,) if residual is None else (y, total)


def formula(x: Tensor, weight: Tensor, residual: Tensor | None, bias: Tensor | None) -> Result:
    """As modules write it: widened to fp32, one operation after the other."""
    total = x if residual is None else x + residual
    wide = total.float()
    if bias is not None:
        wide = wide - wide.mean(-1, keepdim=True)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    if bias is not None:
        return ((scaled * weight + bias).to(x.dtype),)
    y = weight * scaled.to(x.dtype)
    return (y,) if residual is None else (y, total)


def others(device: torch.device) -> dict[str, Callable[..., Result]]:
    compiled = {"compile": torch.compile(formula, dynamic=False)} if device.type == "cuda" else {}
    return {"F": fused, "eager": formula, **compiled}


def case_of(kind: str, rows: int, hidden: int, device: torch.device, *, grad: bool) -> NormCase:
    return NormCase.random(
        rows, hidden, device=device, residual=kind == "add rms", layer=kind == "layer", grad=grad
    )


@pytest.mark.parametrize("num_rows", FEW_ROWS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("kind", KINDS)
def bench_norm(timed, device: torch.device, kind: str, model: ModelShape, num_rows: int) -> None:
    case = case_of(kind, num_rows, model.hidden_size, device, grad=False)
    for a, e in zip(ours(case), ours(case, "reference"), strict=True):
        assert_close(a, e, slack=2)
    given = (case.x, case.weight, case.residual, case.bias)
    work = ops.norm_work(num_rows, model.hidden_size, 2, residual=kind == "add rms")
    with torch.inference_mode():
        peers = {name: lambda call=call: call(*given) for name, call in others(device).items()}
        timed(lambda: ours(case), work=work, cold=False, peers=peers, kind=kind, model=model.name)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("kind", KINDS)
def bench_norm_forward_and_backward(
    timed, device: torch.device, kind: str, model: ModelShape
) -> None:
    num_rows = 16384 if device.type == "cuda" else 512
    case = case_of(kind, num_rows, model.hidden_size, device, grad=True)
    upstream = tuple(torch.randn_like(y) for y in ours(case))

    def trained(call: Callable[..., Result]) -> Callable[[], Result]:
        given = (case.x, case.weight, case.residual, case.bias)
        return lambda: torch.autograd.grad(call(*given), case.inputs, upstream)

    def own(*given: Tensor | None) -> Result:
        return ours(case)

    def reference(*given: Tensor | None) -> Result:
        return ours(case, "reference")

    for a, e in zip(trained(own)(), trained(reference)(), strict=True):
        assert_close(a, e, slack=2)  # both round to bf16
    shape = (num_rows, model.hidden_size, 2)
    forth = ops.norm_work(*shape, residual=kind == "add rms")
    back = ops.norm_backward_work(*shape, residual=kind == "add rms")
    peers = {name: trained(call) for name, call in others(device).items()}
    work = type(forth)(forth.flops + back.flops, forth.bytes + back.bytes)
    timed(trained(own), work=work, peers=peers, kind=kind, model=model.name, num_rows=num_rows)
