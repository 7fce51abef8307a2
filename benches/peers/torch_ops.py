"""Plain torch formulas, eager and through torch.compile, and the fused ones torch ships."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benches.cases_ops import LossCase, MoeCase, NormCase, SampleCase
from benches.peers import Call, Peer
from benches.peers.torch_attention import backward_of


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _norm(case: NormCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if case.bias is not None:
        return _layer_norm, (case.x, case.weight, case.bias, case.eps)
    if case.residual is not None:
        return _add_rms_norm, (case.x, case.residual, case.weight, case.eps)
    return _rms_norm, (case.x, case.weight, case.eps)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.rms_norm(total, (x.shape[-1],), weight, eps), total


def _silu_and_mul(case: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    def formula(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    return formula, (case.x,)


def _rope(case: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    cos, sin = case.cos_sin[case.positions][:, None].chunk(2, dim=-1)

    def turned(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)

    def formula(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return turned(query), turned(key)

    return formula, (case.query, case.key)


def _cross_entropy(case: LossCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels)

    return formula, (case.logits, case.labels)


def _linear_cross_entropy(case: LossCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """In pieces of 1,024 rows whose logits are computed again for the backward pass."""
    from torch.utils.checkpoint import checkpoint

    def piece(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")

    def formula(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows, wanted in zip(hidden.split(1024), labels.split(1024), strict=True):
            total = total + checkpoint(piece, rows, weight, wanted, use_reentrant=False)
        return total / labels.shape[0]

    return formula, (case.hidden, case.weight, case.labels)


Formula = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


def _forward(formula: Formula, compiled: bool, case: Any) -> Call:
    function, arguments = formula(case)
    if compiled:
        function = torch.compile(function, dynamic=False)
    return lambda: function(*arguments)


def _backward(formula: Formula, compiled: bool, case: Any) -> Call:
    output = _forward(formula, compiled, case)()
    output = output[0] if isinstance(output, tuple) else output
    inputs = case.inputs if isinstance(case, NormCase) else (case.x,)
    return backward_of(output, inputs)


def _loss_and_gradients(formula: Formula, compiled: bool, case: LossCase) -> Call:
    forward = _forward(formula, compiled, case)
    inputs = [t for t in (case.logits, case.hidden, case.weight) if t is not None]

    def call() -> tuple[Tensor, ...]:
        loss = forward()
        return (loss, *torch.autograd.grad(loss, inputs))

    return call


def _sorted_sample(case: SampleCase) -> Call:
    def call() -> Tensor:
        ordered, order = case.logits.float().sort(dim=-1, descending=True)
        ordered[:, case.top_k :] = -torch.inf
        chances = ordered.softmax(-1)
        before = chances.cumsum(-1) - chances
        chances[(before >= case.top_p) | (chances < case.min_p * chances[:, :1])] = 0
        return order.gather(1, chances.multinomial(1))[:, 0]

    return call


def _fused_adamw(case: Any) -> Call:
    """``case.parameters`` with gradients already there; steps on, as training does."""
    optimizer = torch.optim.AdamW(case.parameters, lr=1e-3, fused=True)
    return optimizer.step


def _matmul(case: Any) -> Call:
    return lambda: F.linear(case.x, case.weight)


def _scaled_matmul(case: Any) -> Call:
    """fp8 by fp8 with one scale each, through cuBLASLt."""
    largest = 448.0
    scales = [t.abs().amax().float() / largest for t in (case.x, case.weight)]
    x, weight = (
        (t.float() / s).to(torch.float8_e4m3fn)
        for t, s in zip((case.x, case.weight), scales, strict=True)
    )
    return lambda: torch._scaled_mm(
        x, weight.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=case.x.dtype
    )


def _grouped_matmul(case: MoeCase) -> Call:
    weights = case.weights.transpose(1, 2)
    ends = case.offsets[1:].int()
    return lambda: torch._grouped_mm(case.x, weights, offs=ends)


FORMULAS: dict[str, Formula] = {
    "rms_norm": _norm,
    "layer_norm": _norm,
    "add_rms_norm": _norm,
    "silu_and_mul": _silu_and_mul,
    "rope": _rope,
}
LOSSES: dict[str, Formula] = {
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
}


def _both(operation: str, run: Callable[..., Call], formula: Formula) -> list[Peer]:
    """The formula eagerly, which a CPU can run too, and compiled."""
    return [
        Peer("eager", operation, functools.partial(run, formula, False), everywhere=True),
        Peer("compile", operation, functools.partial(run, formula, True)),
    ]


PEERS = [
    *(p for name, f in FORMULAS.items() for p in _both(name, _forward, f)),
    *(p for name, f in FORMULAS.items() for p in _both(f"{name}_backward", _backward, f)),
    *(p for name, f in LOSSES.items() for p in _both(name, _loss_and_gradients, f)),
    Peer("torch sort", "sample", _sorted_sample, everywhere=True),
    Peer("torch fused", "adamw", _fused_adamw, everywhere=True),
    Peer("cublas", "gemm", _matmul, everywhere=True),
    Peer("torch _scaled_mm", "gemm_fp8", _scaled_matmul),
    Peer("torch _grouped_mm", "grouped_linear", _grouped_matmul),
]
