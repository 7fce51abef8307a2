"""The smallest parts of a decoder: linear layers, tables and norms over ``blocks.ops``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import ops
from recipes.model.config import ModelConfig


class Linear(nn.Module):
    """``x @ weight.T + bias``; weight [num_out, num_in]."""

    def __init__(self, num_in: int, num_out: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_out, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Table(nn.Module):
    """A row per token or position; ``scores`` compares vectors with every row (tied heads)."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width, dtype=dtype))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


class RMSNorm(nn.Module):
    """Rows divided by their root mean square, weight put in, after adding ``residual``."""

    def __init__(self, width: int, eps: float, offset: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor, residual: Tensor | None = None):
        return ops.rms_norm(
            _like(x, residual),
            self.weight,
            eps=self.eps,
            residual=residual,
            weight_offset=self.offset,
        )


class LayerNorm(nn.Module):
    """Rows of mean 0 and variance 1, weight and bias put in, after adding ``residual``."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None):
        return ops.layer_norm(
            _like(x, residual), self.weight, self.bias, eps=self.eps, residual=residual
        )


def _like(x: Tensor, residual: Tensor | None) -> Tensor:
    """Under autocast a branch comes back in bfloat16 and the residual stream stays float32."""
    return x if residual is None or x.dtype == residual.dtype else x.to(residual.dtype)


def make_norm(config: ModelConfig, width: int, dtype: torch.dtype) -> nn.Module:
    """The family's norm over ``width`` values."""
    if config.norm == "rms":
        return RMSNorm(width, config.norm_eps, config.norm_offset, dtype)
    return LayerNorm(width, config.norm_eps, dtype)
