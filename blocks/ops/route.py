"""Which experts a token goes to, with which weights."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._autograd import must_trace
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import _expert_launch, _matrix_tiles, reference
from blocks.ops._library import choose, functions
from blocks.ops.routing import Routing

HAS = ("reference", "triton")
Scoring = Literal["softmax", "sigmoid"]


@_checks.expects_tensors
def route(
    router_logits: Float[Tensor, "num_tokens num_experts"],
    top_k: int,
    *,
    scoring: Scoring = "softmax",
    normalize: bool = True,
    bias: Float[Tensor, " num_experts"] | None = None,
    scale: float = 1.0,
    impl: Impl | None = None,
) -> Routing:
    """The ``top_k`` experts of every token, their weights, and the rows sorted by expert.

    Scores are the softmax over all experts or each logit's own sigmoid, in fp32. The largest are
    chosen, the lower id among equals, a NaN never before a number. A token's choice does not
    depend on the other tokens.

    Args:
        router_logits: fp32, bf16, fp16 or fp64.
        top_k: experts a token, 1 to num_experts.
        scoring: ``softmax`` (Mixtral, Qwen3-MoE) or ``sigmoid`` (DeepSeek-V3).
        normalize: divide the weights of a token by their sum.
        bias: added to the scores for the choice only, not for the weights; balances load.
        scale: factor of all weights.
        impl: None for the fastest where the tensor lives.

    Raises:
        ValueError, TypeError: a top_k or scoring that does not exist, a bias of another shape, a
            scale that is not finite.

    >>> import torch
    >>> routing = route(torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 1.0]]), 2)
    >>> routing.experts
    tensor([[1, 2],
            [0, 2]], dtype=torch.int32)
    >>> routing.tokens, routing.offsets
    (tensor([1, 0, 0, 1], dtype=torch.int32), tensor([0, 1, 2, 4], dtype=torch.int32))

    Reference: Shazeer et al. 2017, Outrageously large neural networks, 2.1; Jiang et al. 2024,
    Mixtral of Experts, 2.1; Wang et al. 2024, Auxiliary-loss-free load balancing (bias).
    """
    _check(router_logits, top_k, scoring, bias)
    _checks.check(math.isfinite(scale), "scale", "a finite number", scale)
    traced = must_trace(router_logits, bias)
    options = {"scoring": scoring, "normalize": normalize, "bias": bias, "scale": scale}
    has = HAS if router_logits.dtype in _matrix_tiles.DTYPES else HAS[:1]
    chosen = choose(impl, has, router_logits, traced=traced, differentiable=(*HAS, "native"))
    if chosen == "reference" or torch.compiler.is_compiling():
        return reference.route(router_logits, top_k, **options)
    run = _native_route if chosen == "native" else _expert_launch.route
    routing = run(router_logits.detach(), top_k, **options)
    if not traced:
        return routing
    scores = reference.router_scores(router_logits, scoring)
    weights = reference.router_weights(scores, routing.experts, normalize=normalize, scale=scale)
    return routing._replace(weights=weights)


def _native_route(
    logits: Tensor,
    top_k: int,
    *,
    scoring: str,
    normalize: bool,
    bias: Tensor | None,
    scale: float,
) -> Routing:
    logits = logits.contiguous()
    num_tokens, num_experts = logits.shape
    bias = None if bias is None else bias.detach().float().contiguous()
    routing = Routing(
        torch.empty((num_tokens, top_k), dtype=torch.int32),
        torch.empty((num_tokens, top_k)),
        torch.empty(num_tokens * top_k, dtype=torch.int32),
        torch.empty((num_tokens, top_k), dtype=torch.int32),
        torch.empty(num_experts + 1, dtype=torch.int32),
    )
    _functions()[logits.dtype](
        logits.data_ptr(),
        None if bias is None else bias.data_ptr(),
        *(part.data_ptr() for part in routing),
        num_tokens,
        num_experts,
        top_k,
        scoring == "softmax",
        normalize,
        scale,
    )
    return routing


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("route", "route", "pppppppnnniif")


def _check(logits: Tensor, top_k: int, scoring: str, bias: Tensor | None) -> None:
    if logits.dim() != 2:
        _checks.check_shape("router_logits", logits, ("num_tokens", "num_experts"))
    _checks.check_kind("router_logits", logits, "floating point")
    num_experts = logits.shape[1]
    _checks.check(0 < top_k <= num_experts, "top_k", f"1 to {num_experts} (num_experts)", top_k)
    names = ("softmax", "sigmoid")
    _checks.check(scoring in names, "scoring", f"one of {list(names)}", repr(scoring))
    if bias is not None:
        _checks.check_shape("bias", bias, (num_experts,), "one addend an expert")
        _checks.check_kind("bias", bias, "floating point")
        _checks.check_same_device(router_logits=logits, bias=bias)


def route_work(num_tokens: int, num_experts: int, top_k: int, dtype_bytes: int) -> Work:
    """Work of ``route``: the logits are read once, the parts of ``Routing`` are written."""
    rows = num_tokens * top_k
    written = 4 * (4 * rows + num_experts + 1)
    return Work(5 * num_tokens * num_experts, num_tokens * num_experts * dtype_bytes + written)
