"""A mixture of experts as one operation each way.

Code that sorts the tokens of a batch by expert, or loops over experts, mixes all tokens: as it
stands ranks could not each route their own. As one operation it can be cut along tokens and along
experts: the operation is told the numbers of the experts it is given, and leaves the others out.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("llm_blocks::experts", mutates_args=())
def experts(
    x: Tensor, chosen: Tensor, weights: Tensor, numbers: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """For every token the weighted sum of the outputs of the experts it chose, of those given.

    Args:
        x: [token, channel]. chosen, weights: [token, choice]; experts by number.
        numbers: [expert], of those given. gate_up: [expert, 2 * inner, channel], the gates first,
            down: [expert, channel, inner]; in between is SwiGLU.
    """
    out = torch.zeros_like(x)
    for expert, tokens, choices in _routed(chosen, numbers):
        gate, up = (x[tokens] @ gate_up[expert].T).chunk(2, dim=-1)
        made = (F.silu(gate) * up) @ down[expert].T
        out.index_add_(0, tokens, made * weights[tokens, choices].unsqueeze(-1).to(x.dtype))
    return out


@torch.library.custom_op("llm_blocks::experts_backward", mutates_args=())
def experts_backward(
    grad: Tensor,
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    numbers: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Gradients:
    """Gradients of x, weights, gate_up and down; what is between the matrices is made anew."""
    x_grad, weights_grad = torch.zeros_like(x), torch.zeros_like(weights)
    gate_up_grad, down_grad = torch.zeros_like(gate_up), torch.zeros_like(down)
    for expert, tokens, choices in _routed(chosen, numbers):
        rows, of_made = x[tokens], grad[tokens]
        gate, up = (rows @ gate_up[expert].T).chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        inner = gate * sigmoid * up
        weight = weights[tokens, choices].unsqueeze(-1).to(x.dtype)
        plain = of_made @ down[expert]  # of the inner values, before the weight
        weights_grad[tokens, choices] = (plain * inner).sum(-1).to(weights.dtype)
        down_grad[expert] = (of_made * weight).T @ inner
        of_inner = plain * weight
        of_gate = of_inner * up * sigmoid * (1 + gate * (1 - sigmoid))
        of_both = torch.cat([of_gate, of_inner * gate * sigmoid], dim=-1)
        gate_up_grad[expert] = of_both.T @ rows
        x_grad.index_add_(0, tokens, of_both @ gate_up[expert])
    return x_grad, weights_grad, gate_up_grad, down_grad


@experts.register_fake
def _(
    x: Tensor, chosen: Tensor, weights: Tensor, numbers: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@experts_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    numbers: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Gradients:
    x, weights, gate_up, down = (
        torch.empty_like(one, memory_format=torch.contiguous_format)
        for one in (x, weights, gate_up, down)
    )
    return x, weights, gate_up, down


def _routed(chosen: Tensor, numbers: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For every expert with tokens: its place among those given, the tokens, and their choices."""
    for expert, number in enumerate(numbers.tolist()):
        tokens, choices = torch.where(chosen == number)
        if len(tokens):
            yield expert, tokens, choices


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, chosen, weights, numbers, gate_up, down = ctx.saved_tensors
    made = torch.ops.llm_blocks.experts_backward(grad, x, chosen, weights, numbers, gate_up, down)
    return made[0], None, made[1], None, made[2], made[3]


experts.register_autograd(_backward, setup_context=_keep)


def as_one_operation(module: nn.Module) -> None:
    """Let the experts of transformers models in a module run as ``experts``, in place.

    Experts with biases, other activations or other layouts stay as they are.
    """
    for owner in module.modules():
        if _is_plain(owner):
            owner.forward = functools.partial(_forward, owner)


def _forward(module: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    numbers = torch.arange(module.gate_up_proj.shape[0], device=x.device)
    return torch.ops.llm_blocks.experts(
        x, chosen, weights, numbers, module.gate_up_proj, module.down_proj
    )


def _is_plain(owner: nn.Module) -> bool:
    wanted = {
        "has_gate": True,
        "has_bias": False,
        "has_post_expert_norm": False,
        "is_transposed": False,
        "is_concatenated": True,
        "_is_expert_parallel": False,
    }
    found = {name: getattr(owner, name, None) for name in wanted}
    activation = getattr(owner, "act_fn", None)
    silu = isinstance(activation, nn.SiLU) or "SiLU" in type(activation).__name__
    gate = getattr(type(owner), "_apply_gate", None)
    return found == wanted and silu and getattr(gate, "__name__", "") == "_default_apply_gate"
