"""Which experts a token goes to, with which weights, and in which order rows are then computed."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks.ops import reference
from blocks.ops._autograd import must_trace

HAS = ("reference",)
Scoring = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Tokens sent to experts: num_rows = num_tokens * top_k rows, sorted by expert.

    Rows of one expert lie in token order, so every part is a function of the choice alone. All
    sizes follow from shapes; nothing waits for the device.

    experts: int32 [num_tokens, top_k], the likeliest first.
    weights: fp32 [num_tokens, top_k], differentiable.
    tokens: int32 [num_rows], the token of each row.
    places: int32 [num_tokens, top_k], the row of each choice.
    offsets: int32 [num_experts + 1]; expert e has rows offsets[e] to offsets[e + 1].
    """

    experts: Tensor
    weights: Tensor
    tokens: Tensor
    places: Tensor
    offsets: Tensor


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
        ValueError, TypeError: a top_k or scoring that does not exist, a bias of another shape.

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
    choose_impl(impl, HAS, router_logits, grad=must_trace(router_logits, bias))
    experts, weights = reference.choose_experts(
        router_logits, top_k, scoring=scoring, normalize=normalize, bias=bias, scale=scale
    )
    tokens, places, offsets = sort_by_expert(experts, router_logits.shape[1])
    return Routing(experts, weights, tokens, places, offsets)


def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, places, offsets) of ``Routing``, by a stable sort."""
    sorted_ids, order = experts.flatten().sort(stable=True)
    rows = torch.arange(len(order), dtype=torch.int32, device=experts.device)
    places = torch.empty_like(rows).scatter_(0, order, rows).view_as(experts)
    bounds = torch.arange(num_experts + 1, dtype=torch.int32, device=experts.device)
    offsets = torch.searchsorted(sorted_ids, bounds, out_int32=True)
    return (order // experts.shape[1]).to(torch.int32), places, offsets


def _check(logits: Tensor, top_k: int, scoring: str, bias: Tensor | None) -> None:
    if logits.dim() != 2:
        _checks.check_shape("router_logits", logits, ("num_tokens", "num_experts"))
    if not logits.is_floating_point():
        message = f"router_logits dtype: expected a floating point dtype, got {logits.dtype}"
        raise TypeError(message)
    num_experts = logits.shape[1]
    _checks.check(0 < top_k <= num_experts, "top_k", f"1 to {num_experts} (num_experts)", top_k)
    names = ("softmax", "sigmoid")
    _checks.check(scoring in names, "scoring", f"one of {list(names)}", repr(scoring))
    if bias is not None:
        _checks.check_shape("bias", bias, (num_experts,), "one addend an expert")
        _checks.check_same_device(router_logits=logits, bias=bias)
