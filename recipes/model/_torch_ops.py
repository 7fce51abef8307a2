"""Plain torch stand-ins with the signatures of ``blocks.ops``."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x, weight, *, eps=1e-6, residual=None, weight_offset=0.0):
    total = x if residual is None else x + residual
    wide = total.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (scaled * (weight.float() + weight_offset)).to(x.dtype)
    return y if residual is None else (y, total)


def layer_norm(x, weight, bias=None, *, eps=1e-5, residual=None):
    total = x if residual is None else x + residual
    y = F.layer_norm(total, (x.shape[-1],), weight, bias, eps)
    return y if residual is None else (y, total)


def apply_rope(query, key, positions, cos_sin, *, inplace=False):
    cos, sin = cos_sin[positions].chunk(2, -1)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def gelu_and_mul(gate_up: Tensor, *, approximate: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate=approximate) * up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)
