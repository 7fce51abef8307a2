"""The rotary table of a model: cos and sin of every position, in float32."""

import torch
from torch import Tensor

from recipes.model.config import ModelConfig


def rotary_table(config: ModelConfig, num_positions: int, device: torch.device | str) -> Tensor:
    """float32 [num_positions, head_dim]: cosines of all frequencies, then their sines."""
    assert config.rope is not None
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = config.rope.theta ** (-half / config.head_dim)
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)
