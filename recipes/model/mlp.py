"""The feed-forward part of a decoder layer: plain, gated, or a mixture of gated ones."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import ops
from recipes.model.config import ModelConfig
from recipes.model.parts import Linear

ACTIVATIONS = {
    "silu": F.silu,
    "relu": ops.relu,
    "gelu": functools.partial(ops.gelu, approximate="none"),
    "gelu_tanh": functools.partial(ops.gelu, approximate="tanh"),
}
GATED_ACTIVATIONS = {
    "silu": ops.silu_and_mul,
    "gelu": functools.partial(ops.gelu_and_mul, approximate="none"),
    "gelu_tanh": functools.partial(ops.gelu_and_mul, approximate="tanh"),
}


class MLP(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.up = Linear(hidden, inner, config.mlp_bias, dtype)
        self.down = Linear(inner, hidden, config.mlp_bias, dtype)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, gate and up in one matrix, gate rows first."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = Linear(hidden, 2 * inner, config.mlp_bias, dtype)
        self.down = Linear(inner, hidden, config.mlp_bias, dtype)
        self.activation = GATED_ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate_up(x)))
