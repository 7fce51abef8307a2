"""Attention on local parts: a causal mask begins at the rank's first query.

Torch's kernel takes the channels of a head to lie side by side, without looking.
"""

from typing import Any

import torch
from torch import Tensor

from recipes.plan.execute.local_call import LocalCall


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
    mask = _mask(call, 1, query, key.shape[2]) if is_causal else None
    if mask is not None:
        is_causal, attn_mask = False, mask
    tensors = map(_side_by_side, (grad, query, key, value, out, logsumexp))
    return target(*tensors, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
