"""A mixture of gated MLPs: each token goes through the few experts its router prefers."""

from typing import Literal

import torch
from torch import Tensor, nn

from blocks import ops
from recipes.model.config import ModelConfig
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
        assert config.activation != "relu", "families with experts gate with silu or gelu"
        self.activation: Literal["silu", "gelu", "gelu_tanh"] = config.activation
        self.top_k = config.num_experts_per_token

    def forward(self, x: Tensor) -> Tensor:
        routing = ops.route(self.router(x), self.top_k)
        x, gate_up, down = _autocast(x, self.gate_up, self.down)
        return ops.moe(x, gate_up, down, routing, activation=self.activation)


def _autocast(x: Tensor, *matrices: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to torch's products, for one it does not know."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return (x, *matrices)
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) for t in (x, *matrices))
