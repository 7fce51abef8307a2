"""A mixture of gated MLPs: each token goes through the few experts its router prefers."""

import torch
from torch import Tensor, nn

from blocks import ops
from recipes.model.config import ModelConfig
from recipes.model.mlp import GATED_ACTIVATIONS
from recipes.model.parts import Linear


class MixtureMLP(nn.Module):
    """Top-k of ``num_experts`` gated MLPs, weighted by the router and summed.

    The weights are the softmax over all experts, restricted to the chosen and divided by their
    sum, in float32. Tokens are grouped by expert, so an expert's matrices are read once a step,
    and those nobody chose are not read at all.

    Reference: Jiang et al. 2024, Mixtral of Experts, 2.1.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
        self.router = Linear(hidden, experts, False, dtype)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inner, hidden, dtype=dtype))
        self.down = nn.Parameter(torch.empty(experts, hidden, inner, dtype=dtype))
        self.activation = GATED_ACTIVATIONS[config.activation]
        self.top_k = config.num_experts_per_token

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = route(self.router(x), self.top_k)  # [num_tokens, top_k] each
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            tokens, rank = torch.where(chosen == expert)
            y = self._expert(expert, x[tokens]) * weights[tokens, rank, None]
            out = out.index_add(0, tokens, y.to(x.dtype))
        return out

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        return ops.linear(self.activation(ops.linear(x, self.gate_up[expert])), self.down[expert])


def route(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights (float32, summing to one) and indices of each token's ``top_k`` experts."""
    weights, chosen = scores.float().softmax(-1).topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), chosen
