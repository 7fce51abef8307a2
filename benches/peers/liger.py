"""Liger: Triton kernels for training (Hsu et al. 2024)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benches.cases_ops import LossCase, NormCase
from benches.peers import Call, Peer, theirs
from benches.peers.torch_attention import backward_of

NEEDS = ("liger_kernel",)


def _norm(case: NormCase) -> Call:
    functional = theirs("liger_kernel.transformers").functional

    if case.bias is not None:
        return lambda: functional.liger_layer_norm(case.x, case.weight, case.bias, case.eps)
    if case.residual is not None:
        return lambda: functional.liger_fused_add_rms_norm(
            case.x, case.residual, case.weight, case.eps, in_place=False
        )
    return lambda: functional.liger_rms_norm(case.x, case.weight, case.eps, in_place=False)


def _silu_and_mul(case: Any) -> Call:
    """Theirs takes the halves as two tensors; they are cut outside the call."""
    functional = theirs("liger_kernel.transformers").functional

    gate, up = (half.contiguous() for half in case.x.detach().chunk(2, dim=-1))
    gate.requires_grad_(case.x.requires_grad)
    up.requires_grad_(case.x.requires_grad)
    case.halves = (gate, up)
    return lambda: functional.liger_swiglu(gate, up)


def _silu_and_mul_backward(case: Any) -> Call:
    output = _silu_and_mul(case)()
    run = backward_of(output, case.halves)
    return lambda: (torch.cat(run(), dim=-1),)


def _rope(case: Any) -> Call:
    functional = theirs("liger_kernel.transformers").functional

    cos, sin = (h.repeat(1, 2)[None] for h in case.cos_sin[case.positions].chunk(2, dim=-1))
    q, k = (t.transpose(0, 1)[None] for t in (case.query, case.key))
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)

    def call() -> tuple[Tensor, ...]:
        found = functional.liger_rope(q.clone(), k.clone(), cos, sin)  # theirs turns in place
        return tuple(t[0].transpose(0, 1) for t in found)

    return call


def _backward(forward: Callable[[NormCase], Call], case: NormCase) -> Call:
    output = forward(case)()
    return backward_of(output[0] if isinstance(output, tuple) else output, case.inputs)


def _loss(case: LossCase) -> Call:
    functional = theirs("liger_kernel.transformers").functional

    inputs = [t for t in (case.logits, case.hidden, case.weight) if t is not None]

    def call() -> tuple[Tensor, ...]:
        if case.logits is not None:
            loss = functional.liger_cross_entropy(case.logits.clone(), case.labels)
        else:
            loss = functional.liger_fused_linear_cross_entropy(
                case.hidden, case.weight, case.labels
            )
        return (loss, *torch.autograd.grad(loss, inputs))

    return call


PEERS = [
    *(Peer("liger", name, _norm, NEEDS) for name in ("rms_norm", "layer_norm", "add_rms_norm")),
    *(
        Peer("liger", f"{name}_backward", functools.partial(_backward, _norm), NEEDS)
        for name in ("rms_norm", "layer_norm", "add_rms_norm")
    ),
    Peer("liger", "silu_and_mul", _silu_and_mul, NEEDS),
    Peer("liger", "silu_and_mul_backward", _silu_and_mul_backward, NEEDS),
    Peer("liger", "rope", _rope, NEEDS),
    Peer("liger", "cross_entropy", _loss, NEEDS),
    Peer("liger", "linear_cross_entropy", _loss, NEEDS),
]
