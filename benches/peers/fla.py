"""Flash-linear-attention's softmax attention and norms, in Triton (Yang et al. 2024)."""

from typing import Any

from benches.cases import PackedCase
from benches.cases_ops import NormCase
from benches.peers import Call, Peer, theirs
from benches.peers.torch_attention import backward_of

NEEDS = ("fla",)


def _prefill(case: PackedCase) -> Call:
    parallel_attn = theirs("fla.ops.attn.parallel").parallel_attn

    q, k, v = case.tokens_first()
    return lambda: parallel_attn(q, k, v).flatten(0, 1)


def _prefill_backward(case: PackedCase) -> Call:
    return backward_of(_prefill(case)(), case.tensors)


def _norm(case: NormCase) -> Call:
    package = theirs("fla.modules.norm.layernorm")
    layer_norm = package.layer_norm
    rms_norm = package.rms_norm

    if case.bias is not None:
        return lambda: layer_norm(case.x, case.weight, case.bias, eps=case.eps)
    keep = case.residual is not None
    return lambda: rms_norm(
        case.x, case.weight, None, residual=case.residual, eps=case.eps, prenorm=keep
    )


def _norm_backward(case: NormCase) -> Call:
    output: Any = _norm(case)()
    return backward_of(output[0] if isinstance(output, tuple) else output, case.inputs)


PEERS = [
    Peer("fla", "prefill", _prefill, NEEDS),
    Peer("fla", "prefill_backward", _prefill_backward, NEEDS),
    *(
        Peer("fla", f"{name}{suffix}", make, NEEDS)
        for name in ("rms_norm", "layer_norm", "add_rms_norm")
        for suffix, make in (("", _norm), ("_backward", _norm_backward))
    ),
]
