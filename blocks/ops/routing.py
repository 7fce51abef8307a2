"""Rows sorted by the expert they go to."""

from typing import NamedTuple

import torch
from torch import Tensor


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


def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, places, offsets) of ``Routing``, by a stable sort."""
    sorted_ids, order = experts.flatten().sort(stable=True)
    rows = torch.arange(len(order), dtype=torch.int32, device=experts.device)
    places = torch.empty_like(rows).scatter_(0, order, rows).view_as(experts)
    bounds = torch.arange(num_experts + 1, dtype=torch.int32, device=experts.device)
    offsets = torch.searchsorted(sorted_ids, bounds, out_int32=True)
    return (order // experts.shape[1]).to(torch.int32), places, offsets
