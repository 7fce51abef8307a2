"""Attention on local parts: a causal mask begins at the rank's first query.

A trace has the CPU's kernel, which takes the channels of a head to lie side by side, without
looking. On an accelerator ``blocks.attention`` takes its place where the mask is causal, and plain
products where a mask is given or there is none.
"""

import math
from typing import Any

import torch
from torch import Tensor

from blocks.attention import slice_attention, slice_attention_backward
from recipes.plan.execute.local_call import LocalCall


def attended(
    call: LocalCall,
    target: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    """``_scaled_dot_product_flash_attention_for_cpu``."""
    first = call.input_runs(0)[2].start
    if query.device.type != "cpu":
        return attended_by_blocks(query, key, value, first, is_causal, attn_mask, scale)
    mask = _mask(call, 0, query, key.shape[2]) if is_causal else None
    if mask is not None:
        is_causal, attn_mask = False, mask
    tensors = map(_side_by_side, (query, key, value))
    return target(*tensors, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)


def attention_gradient(
    call: LocalCall,
    target: Any,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    """``_scaled_dot_product_flash_attention_for_cpu_backward``."""
    first = call.input_runs(1)[2].start
    tensors = (grad, query, key, value, out, logsumexp)
    if query.device.type != "cpu":
        return attention_gradient_by_blocks(*tensors, first, is_causal, attn_mask, scale)
    mask = _mask(call, 1, query, key.shape[2]) if is_causal else None
    if mask is not None:
        is_causal, attn_mask = False, mask
    dense = map(_side_by_side, tensors)
    return target(*dense, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)


def _mask(call: LocalCall, at: int, query: Tensor, num_keys: int) -> Tensor | None:
    """What to add to the scores; None where the operation's own mask is right."""
    run = call.input_runs(at)[2]
    if run.size == call.inputs[at].shape[2]:
        return None
    rows = torch.arange(run.start, run.stop, device=query.device)
    later = torch.arange(num_keys, device=query.device) > rows.unsqueeze(-1)
    return query.new_zeros(later.shape).masked_fill_(later, -torch.inf)


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def attended_by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: int,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Output, and the log of every row's sum of exponentiated scores, as the CPU's kernel has them.

    Args:
        query, key, value: [batch, num_heads, len, head_dim]; keys of all positions.
        first: position of the first query.
    """
    if is_causal:
        q, k, v = (_by_token(x) for x in (query, key, value))
        out, lse = slice_attention(q, k, v, first, scale=scale)
        return out.transpose(1, 2), lse.transpose(1, 2).contiguous()
    scores = _scores(query, key, attn_mask, scale)
    lse = scores.logsumexp(-1)
    lse = lse.masked_fill(lse == -torch.inf, 0.0)  # of rows that see nothing: their output is zero
    weights = torch.exp(scores - lse.unsqueeze(-1))
    return (weights @ value.to(weights.dtype)).to(query.dtype), lse


def attention_gradient_by_blocks(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    first: int,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; see ``attended_by_blocks``."""
    if is_causal:
        q, k, v, g, o = (_by_token(x) for x in (query, key, value, grad, out))
        wide = torch.promote_types(k.dtype, torch.float32)
        to_key, to_value = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        lses = lse.transpose(1, 2).contiguous()
        to_query = slice_attention_backward(
            g, q, k, v, o, lses, first, to_key, to_value, scale=scale
        )
        found = (to_query, to_key.to(k.dtype), to_value.to(v.dtype))
        by_query, by_key, by_value = (x.transpose(1, 2) for x in found)
        return by_query, by_key, by_value
    scores = _scores(query, key, attn_mask, scale)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    g, v, o = (x.to(weights.dtype) for x in (grad, value, out))
    slopes = weights * (g @ v.mT - (g * o).sum(-1, keepdim=True)) * _scale(query, scale)
    to_query = slopes @ key.to(weights.dtype)
    to_key, to_value = slopes.mT @ query.to(weights.dtype), weights.mT @ g
    return to_query.to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype)


def _by_token(x: Tensor) -> Tensor:
    """[batch, num_heads, len, head_dim] to [batch, len, num_heads, head_dim]."""
    return x.transpose(1, 2).contiguous()


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """In float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT * _scale(query, scale)
    return scores if mask is None else scores + mask


def _scale(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale
